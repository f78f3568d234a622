"""What masking finds and what it leaves: `python -m benchmarks.masking`; the last line is one JSON document.

Two lists of texts, in English and Chinese: in the one, what must go is marked, in the other nothing must. And how fast
it is, on both lists together and on the text that takes longest.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe
from instructgpt.flags import parse, run_main
from instructgpt.serving.privacy import mask
from instructgpt.settings import PositiveInt, Settings
from instructgpt.strict_json import to_json

LISTS = Path(__file__).parents[1] / "tests" / "serving"


@dataclass(frozen=True)
class MaskingConfig(Settings):
    """Masks the lists of the tests, and measures the time."""

    characters: PositiveInt = 1_000_000
    """Length of the text that is timed."""


def measure(config: MaskingConfig) -> None:
    must_go = [line.replace("\\n", "\n").split("\t") for line in _lines("must_be_masked.txt")]
    must_stay = _lines("must_stay.txt")
    plain = {text: re.sub("[⟦⟧]", "", text) for _, text in must_go}
    of_kind = Counter(kind for kind, _ in must_go)
    exact = Counter(kind for kind, text in must_go if mask(plain[text]) == re.sub("⟦[^⟧]*⟧", f"[{kind}]", text))
    for kind in sorted(of_kind):
        print(f"{kind:6} {exact[kind]:4} of {of_kind[kind]:4} masked, and nothing beside them")
    stayed = sum(mask(text) == text for text in must_stay)
    print(f"{'':6} {stayed:4} of {len(must_stay):4} harmless texts left as they are")
    both = "\n".join([*plain.values(), *must_stay]) + "\n"
    text = both * (config.characters // len(both) + 1)
    begun = time.perf_counter()
    mask(text)
    rate = len(text) / (time.perf_counter() - begun)
    print(f"{rate / 1e6:.2f} million characters a second")
    print(
        to_json(
            {
                "machine": describe(torch.device("cpu")),
                "masked": sum(exact.values()),
                "must be masked": len(must_go),
                "stayed": stayed,
                "must stay": len(must_stay),
                "characters a second": round(rate),
            }
        )
    )


def _lines(name: str) -> list[str]:
    return (LISTS / name).read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(MaskingConfig, sys.argv[1:], "benchmarks.masking"))))
