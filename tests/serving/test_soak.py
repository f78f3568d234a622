"""A service under more load than it can take: nobody who was let in is lost, the others are told when to come again,
and its memory stays.

    python -m pytest tests/serving/test_soak.py -s --soak 600     # ten minutes; prints a line of JSON
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.commands.test_serve import make_run, serving
from tests.serving import load

# Prefixes are kept as long as the cache has room for them: so little that it is full from the start.
_LETS = ("--max-rows", "8", "--max-queue", "16", "--cache-bytes", str(16 << 20))
_MOST_GROWTH = 1.05


class Memory:
    """A process's resident memory, read each half second."""

    def __init__(self, pid: int):
        self._file = Path(f"/proc/{pid}/statm")
        self.megabytes: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.megabytes.append(int(self._file.read_text().split()[1]) * 4096 / 2**20)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_at_one_and_a_half_times_its_capacity(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--soak")
    with serving(make_run(tmp_path / "small"), *_LETS) as (process, address):
        drain = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)
        drain.start()  # a full pipe would hold up the log
        port = int(address.rpartition(":")[2])
        asyncio.run(load.closed(port, "small", 8, 2))  # warm
        capacity = asyncio.run(load.closed(port, "small", 8, max(3, seconds / 20)))
        memory = Memory(process.pid)
        begun = time.monotonic()
        outcomes = asyncio.run(load.open_load(port, "small", 1.5 * capacity, seconds))
        memory.stop()
        kinds = Counter(outcome.kind for outcome in outcomes)
        done = [outcome for outcome in outcomes if outcome.kind == load.DONE]
        third = max(1, len(memory.megabytes) // 3)
        early, late = max(memory.megabytes[:third]), max(memory.megabytes[-third:])
        report = {
            "seconds": round(time.monotonic() - begun, 1), "capacity_per_s": round(capacity, 2),
            "offered_per_s": round(len(outcomes) / seconds, 2), "answered_per_s": round(len(done) / seconds, 2),
            **{kind: kinds[kind] for kind in (load.DONE, load.REFUSED, load.LOST)},
            **{
                f"{name}_{what}_s": round(load.percentile([getattr(outcome, what) for outcome in done], p), 3)
                for what in ("first", "whole") for name, p in (("p50", 0.5), ("p99", 0.99))
            },
            "refused_p99_s": round(load.percentile([o.whole for o in outcomes if o.kind == load.REFUSED], 0.99), 3),
            "memory_early_mb": round(early, 1), "memory_late_mb": round(late, 1),
        }  # fmt: skip
        print("\n" + json.dumps(report))
        assert kinds[load.LOST] == 0, [outcome.why for outcome in outcomes if outcome.kind == load.LOST][:5]
        assert kinds[load.REFUSED] > 0 and kinds[load.DONE] > 0
        assert late <= early * _MOST_GROWTH
