"""Settings refuse numbers outside of the ranges that their types name, and say the range; `~` is the home folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import pytest

from instructgpt.commands.evaluate import EvalConfig
from instructgpt.commands.generate import GenerateConfig
from instructgpt.errors import UserError
from instructgpt.flags import parse
from instructgpt.settings import FilePath, PositiveInt, Range, Settings, Share
from instructgpt.stages.assess import LedgerConfig
from instructgpt.stages.best_of_n import BestOfNConfig
from instructgpt.stages.dpo import DPOConfig
from instructgpt.stages.grpo import GRPOConfig
from instructgpt.stages.pipeline import PipelineConfig
from instructgpt.stages.ppo import PPOConfig
from instructgpt.stages.pretrain import PretrainConfig
from instructgpt.stages.reward import RewardConfig
from instructgpt.stages.rlhf import RLHFConfig
from instructgpt.stages.sft import SFTConfig
from instructgpt.stages.tokenizer import TokenizerConfig
from instructgpt.training.loop import FitConfig


@dataclass(frozen=True)
class Small(Settings):
    rows: PositiveInt = 1
    share: Share = 0.5
    open: Annotated[float, Range(-1, 1, without_least=True, without_most=True)] = 0.0
    free: float = 0.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rows": 0}, "rows is 0; it must be at least 1"),
        ({"share": 1.01}, "share is 1.01; it must be at least 0 and at most 1"),
        ({"open": -1}, "open is -1; it must be above -1 and below 1"),
        ({"open": 1}, "open is 1; it must be above -1 and below 1"),
        ({"share": math.nan}, "share is nan; it must be"),
    ],
)
def test_a_number_out_of_range_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Small(**given)


def test_the_ends_of_a_range() -> None:
    smallest = Small(rows=1, share=0.0, open=-0.999, free=-math.inf)
    largest = Small(rows=10**9, share=1.0, open=0.999, free=math.inf)
    assert (smallest.rows, smallest.share, smallest.open, smallest.free) == (1, 0.0, -0.999, -math.inf)
    assert (largest.rows, largest.share, largest.open, largest.free) == (10**9, 1.0, 0.999, math.inf)


def test_a_subclass_may_ask_for_more() -> None:
    @dataclass(frozen=True)
    class Stricter(Small):
        rows: Annotated[int, Range(4)] = 4

    with pytest.raises(UserError, match="rows is 3; it must be at least 4"):
        Stricter(rows=3)


CONFIGS = (
    BestOfNConfig, DPOConfig, EvalConfig, FitConfig, GRPOConfig, GenerateConfig, LedgerConfig, PPOConfig,
    PipelineConfig, PretrainConfig, RLHFConfig, RewardConfig, SFTConfig, TokenizerConfig,
)  # fmt: skip
WITHOUT_RANGE = {"min_reward", "character_coverage"}
"""Any number may be one's smallest reward; the tokenizer itself checks its coverage."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_number_of_the_command_line_has_a_range(config: type) -> None:
    assert issubclass(config, Settings)
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            test_every_number_of_the_command_line_has_a_range(kind)
        assert kind not in (int, float) or field.name in WITHOUT_RANGE, f"{config.__name__}.{field.name}"


# --- texts that name files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named(Settings):
    out: FilePath = ""
    data: tuple[FilePath, ...] = ()
    prompt: str = ""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~/runs/x", "HOME/runs/x"),
        ("~", "HOME"),
        ("~/en.gz+~/fr.gz", "HOME/en.gz+HOME/fr.gz"),
        ("~/rewards.py:score", "HOME/rewards.py:score"),
        ("~/b.csv:prompt={a},answer={b}", "HOME/b.csv:prompt={a},answer={b}"),
        ("a/~/b", "a/~/b"),
        ("x~", "x~"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
        ("world", "world"),
        ("", ""),
    ],
)
def test_a_tilde_is_the_home_folder(given: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/houses/somebody")
    monkeypatch.setenv("USERPROFILE", "/houses/somebody")
    found = found.replace("HOME", "/houses/somebody")
    expected = Named(out=found, data=("plain", found), prompt=given)
    assert Named(out=given, data=("plain", given), prompt=given) == expected
    assert parse(Named, [f"--out={given}", "--data", "plain", given, f"--prompt={given}"], "x") == expected


NO_FILE = {
    "answer", "backend", "chosen", "columns", "device", "dtype", "encoding", "families", "labels", "lora_on", "preset",
    "prompt", "rejected", "separator", "stop", "system", "text_field",
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_text_of_the_command_line_is_known_to_name_a_file_or_not(config: type) -> None:
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            test_every_text_of_the_command_line_is_known_to_name_a_file_or_not(kind)
        is_text = kind is not FilePath and str in (kind, *get_args(kind))
        assert not is_text or field.name in NO_FILE, f"{config.__name__}.{field.name} may need to be a FilePath"
