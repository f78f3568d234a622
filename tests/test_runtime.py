import os
import subprocess
import sys

import pytest
import torch

from instructgpt.errors import UserError
from instructgpt.runtime import (
    Ranks,
    choose_threads,
    cores,
    join_ranks,
    peak_memory,
    resolve_device,
    resolve_precision,
    seed_everything,
    threads_told,
)  # fmt: skip

CPU = torch.device("cpu")


def test_auto_takes_what_there_is() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(("name", "complaint"), [("cppu", "did you mean 'cpu'"), ("cpu:x", "is not a device")])
def test_devices_that_are_none(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device() -> None:
    with pytest.raises(UserError, match="--device cuda"):
        resolve_device("cuda:1")


def test_precisions() -> None:
    assert resolve_precision("float32", CPU).autocast is None
    mixed = resolve_precision("bfloat16", CPU)
    assert (mixed.parameters, mixed.autocast) == (torch.float32, torch.bfloat16)
    master = resolve_precision("bfloat16-master", CPU)
    assert (master.parameters, master.autocast) == (torch.bfloat16, None) and "master" in master.name
    assert resolve_precision("float16", torch.device("cuda")).scale_loss
    with mixed.context(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with resolve_precision("float32", CPU).context(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("has_tiles", "chosen"), [(True, torch.bfloat16), (False, None)])
def test_a_cpu_computes_in_bfloat16_where_it_has_tiles_for_it(monkeypatch, has_tiles: bool, chosen) -> None:
    """AVX512-BF16 alone multiplies half as fast in bfloat16 as in float32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_precision("auto", CPU).autocast is chosen


def test_formats_that_cannot_be_had() -> None:
    with pytest.raises(UserError, match="float16 needs a GPU"):
        resolve_precision("float16", CPU)
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        resolve_precision("bfloat6", CPU)


def test_a_seed_repeats_what_is_drawn() -> None:
    seed_everything(3)
    first = torch.rand(4)
    seed_everything(3)
    assert torch.equal(first, torch.rand(4))


def test_one_rank_sums_to_itself() -> None:
    assert Ranks().is_first and Ranks().sum(torch.tensor(2.0)) == 2.0


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(CPU)
    held = torch.ones(before // 4)  # as much again, for this process may have held that much before
    assert peak_memory(CPU) > before + 50_000_000, held.nbytes


@pytest.mark.parametrize(("given", "then"), [(None, "PASSIVE"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_wants_otherwise(given: str | None, then: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    # Before torch is loaded: OpenMP reads it once.
    program = "import os, sys, instructgpt; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [then, "False"]


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is not set: start"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"), ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": "1.5"}, "no whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 2 of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "p"}, "MASTER_PORT is 'p'"),
    ],
)  # fmt: skip
def test_half_an_announcement_of_ranks_is_told(
    environment: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _announce(environment, monkeypatch)
    with pytest.raises(UserError, match=complaint):
        join_ranks(CPU)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": " "}, {"WORLD_SIZE": "1"}])
def test_no_announcement_is_one_rank(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(environment, monkeypatch)
    assert join_ranks(CPU) == Ranks(0, 1)


def _announce(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("quota", "limit"),
    [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1), ("max 100000", None), ("", None), ("x y", None)],
)
def test_cores_are_those_that_a_container_is_given(tmp_path, quota, limit, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert cores(tmp_path / "cpu.max") == (limit or 8) and cores(tmp_path / "none") == 8


@pytest.mark.parametrize(("asked", "threads"), [("", 2), ("6", 6), (None, 2)])
def test_threads_are_no_more_than_cores_unless_asked_for(asked, threads, monkeypatch):
    chosen = [6]
    monkeypatch.setattr("torch.get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("instructgpt.runtime.cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", asked) if asked is not None else monkeypatch.delenv("OMP_NUM_THREADS")
    choose_threads()
    assert chosen[-1] == threads and threads_told().startswith(f"{threads} threads")
    chosen.append(1)
    choose_threads()
    assert chosen[-1] == 1, "fewer are somebody's choice"


@pytest.mark.parametrize(("policy", "told"), [("PASSIVE", "sleep"), ("passive", "sleep"), ("", "spin")])
def test_the_waiting_policy_is_told(policy, told, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert told in threads_told()
