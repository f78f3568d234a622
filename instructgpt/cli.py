"""Which commands there are: those for trained models and for data, each a file of `commands/`, and `train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from instructgpt import stages
from instructgpt.commands.chat import ChatConfig, chat
from instructgpt.commands.data import data
from instructgpt.commands.evaluate import EvalConfig, evaluate
from instructgpt.commands.exercise import exercises
from instructgpt.commands.export import ExportConfig, export
from instructgpt.commands.generate import GenerateConfig, generate
from instructgpt.commands.import_ import ImportConfig, import_
from instructgpt.commands.ledger import LedgerConfig, ledger
from instructgpt.commands.look import LookConfig, look
from instructgpt.commands.race import races
from instructgpt.commands.serve import ServeConfig, serve
from instructgpt.errors import UserError, suggestion
from instructgpt.flags import parse, program


class Command(NamedTuple):
    """One word after `instructgpt`."""

    run: Callable[[Sequence[str]], int]
    purpose: str


def _with(config_class: type[Any], run: Callable[[Any], int], name: str) -> Callable[[Sequence[str]], int]:
    return lambda argv: run(parse(config_class, argv, f"{program()} {name}"))


COMMANDS = {
    "train": Command(stages.main, "train a model, a stage at a time or whole: what train.py does"),
    "generate": Command(_with(GenerateConfig, generate, "generate"), "answer one prompt"),
    "chat": Command(_with(ChatConfig, chat, "chat"), "talk with a model in the terminal"),
    "serve": Command(
        _with(ServeConfig, serve, "serve"), "answer over HTTP, as OpenAI's interface does; a page to chat on"
    ),
    "eval": Command(_with(EvalConfig, evaluate, "eval"), "score a model on the embedded world or on files"),
    "look": Command(_with(LookConfig, look, "look"), "a page that shows what a model does inside on one prompt"),
    "ledger": Command(_with(LedgerConfig, ledger, "ledger"), "compare stages: true reward, reward model, KL, cost"),
    "import": Command(_with(ImportConfig, import_, "import"), "make a run of a model that others trained"),
    "export": Command(_with(ExportConfig, export, "export"), "write a run's model for other engines"),
    "data": Command(data, "list or download public data sets"),
    "exercise": Command(exercises, "write functions of this project yourself, judged at once"),
    "race": Command(races, "train the best model with as many FLOPs as five minutes have"),
}


def run_command(argv: Sequence[str]) -> int:
    """`COMMAND [flags]` to an exit code; without a command it lists them. Errors: UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {program()} COMMAND [flags]; COMMAND --help lists its flags\n")
        print("\n".join(f"  {name:<9} {command.purpose}" for name, command in COMMANDS.items()))
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{suggestion(name, COMMANDS)}")
    return COMMANDS[name].run(rest)
