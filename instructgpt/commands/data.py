"""`instructgpt data`: lists and downloads public data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instructgpt.data.download import fetch, list_sets
from instructgpt.errors import UserError, suggestion
from instructgpt.flags import parse, program
from instructgpt.settings import FilePath, Settings


@dataclass(frozen=True)
class DataConfig(Settings):
    """`data list` shows the public data sets that are known; `data get NAME --out DIR` downloads one."""

    out: FilePath = ""
    """The directory to put the files in; by default data/NAME."""


def data(argv: Sequence[str]) -> int:
    """Lists the named sets with their licences, or downloads one."""
    action, *rest = argv or ["list"]
    prog = f"{program()} data"
    if action in ("-h", "--help"):
        parse(DataConfig, argv, prog)
    if action == "list":
        parse(DataConfig, rest, f"{prog} list")
        for public_set in list_sets():
            size = f"{public_set.size / 1e6:,.1f} MB"
            print(f"{public_set.name:<24} {size:>10}  {public_set.about}; licence: {public_set.licence}")
        return 0
    if action != "get":
        raise UserError(f"{prog} knows list and get, not {action!r}{suggestion(action, ('list', 'get'))}")
    if not rest or rest[0].startswith("-"):
        raise UserError(f"{prog} get needs the name of a set{suggestion('', [each.name for each in list_sets()])}")
    name, *flags = rest
    config = parse(DataConfig, flags, f"{prog} get")
    fetch(name, config.out or Path("data") / name)
    return 0
