"""Command lines: a dataclass becomes flags, a mistake becomes one line, an exception becomes an exit code.

tyro builds the parser and the help from the dataclass. What it would tell in a box is checked here first, so that
the user reads one line with the nearest right word in it.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from instructgpt.errors import UserError, suggestion
from instructgpt.shortage import shortage

Config = TypeVar("Config")

# A word with a space in it is a value, and so is a dash with a digit: texts and negative numbers.
_FLAG = re.compile(r"--[A-Za-z][\w-]*(?:=.*)?", re.DOTALL)
_HELP = ("-h", "--help")


def program() -> str:
    """The program as it was called, to be copied: `train.py`, `.venv/bin/python -m instructgpt` or `instructgpt`."""
    called = Path(sys.argv[0])
    if called.name == "train.py":
        return called.name
    is_module = called.parts[-2:] == ("instructgpt", "__main__.py")
    return f"{shlex.quote(sys.orig_argv[0])} -m instructgpt" if is_module else "instructgpt"


def train_command(stage: str) -> str:
    """What trains `stage`, in the words of who called: `train.py sft`, `instructgpt train sft`."""
    return f"{program()} {stage}" if program() == "train.py" else f"{program()} train {stage}"


class Given(NamedTuple):
    """One flag of a command line."""

    flag: str
    """As tyro names it: `--max-steps`. Empty for the words before the first flag."""
    values: list[str]
    written: str
    """As the user wrote it."""


def split_flags(argv: Sequence[str]) -> Iterator[Given]:
    """The command line's flags, in order, each with the words that follow it up to the next one."""
    current = Given("", [], "")
    for word in argv:
        if word in _HELP or _FLAG.fullmatch(word):
            if current.flag or current.values:
                yield current
            written, equals, value = word.partition("=")
            current = Given(written.replace("_", "-"), [value] if equals else [], written)
        else:
            current.values.append(word)
    if current.flag or current.values:
        yield current


def given_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of one flag, read ahead of parsing: `--preset` decides the defaults of all others. None if absent."""
    values = [given.values[0] for given in split_flags(argv) if given.flag == flag and given.values]
    return values[-1] if values else None


Escaped = Annotated[str, "escaped"]
"""A text among the flags in which `\\n` is a line end: see `unescape`."""
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    r"""The text that a flag's value stands for: `\n`, `\t`, `\r` and `\\` are line end, tab, return and backslash.

    A shell gives a program `\n` as two characters. Any other backslash stays what it is.
    """
    return re.sub(r"\\([ntr\\])", lambda escape: _ESCAPES[escape[1]], text)


def parse(
    config_class: type[Config], argv: Sequence[str], prog: str, default: Config | None = None, takes: str = ""
) -> Config:
    """An instance of a dataclass, its fields (those of dataclasses inside it too) taken from flags.

    `max_steps: int` is `--max-steps 3`; `resume: bool` is `--resume` or `--no-resume`; `text: tuple[str, ...]` takes
    several values. `default` holds the values of flags that are not given; without it the class's own defaults count.
    `--help` prints every field's docstring and default, and exits with code 0. takes: what stands before the flags, as
    the usage names it, such as NAME; the caller takes it off argv.

    Raises UserError, in one line, for an unknown flag (it suggests the nearest), a value of the wrong type, a choice
    that does not exist, a missing value, or a word that belongs to no flag.
    """
    import tyro  # a quarter of a second: only for those who parse

    given = list(split_flags(argv))
    is_help = any(flag in _HELP for flag, *_ in given)
    if not is_help:
        _check(config_class, given, prog)
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(
                config_class,
                prog=f"{prog} {takes}" if is_help and takes else prog,
                args=[word for each in given for word in _unambiguous(_unescaped(each, config_class))],
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UserError(f"{_first_paragraph(told.getvalue())} See {prog} --help") from None


def _unambiguous(given: Given) -> list[str]:
    """The flag as words; with =, so that tyro takes no value that begins with a dash for another flag."""
    return [f"{given.flag}={given.values[0]}"] if len(given.values) == 1 and given.flag else [given.flag, *given.values]


def _unescaped(given: Given, config_class: type) -> Given:
    kind = flag_types(config_class, extras=True).get(given.flag)
    is_escaped = Escaped in (kind, *get_args(kind))
    return given._replace(values=[unescape(value) for value in given.values]) if is_escaped else given


def _first_paragraph(boxed: str) -> str:
    """The message of one of tyro's boxes, without the box and the help below it."""
    lines = []
    for line in boxed.splitlines():
        line = line.strip("╭╮╰╯│ ")
        if line and not line.strip("─"):
            break
        if not line.endswith("─"):
            lines.append(line)
    return re.sub(r"\s+", " ", " ".join(lines)).strip() or "the command line cannot be read."


def flag_types(config_class: type, extras: bool = False) -> dict[str, Any]:
    """The flags of a dataclass, those of dataclasses inside it included, each with its field's type.

    `extras` leaves in the types what `Annotated` says of them.
    """
    hints = get_type_hints(config_class, include_extras=extras)
    flags: dict[str, Any] = {}
    for field in fields(config_class):  # pyright: ignore[reportArgumentType]
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            flags |= flag_types(kind, extras)
        elif field.init:
            flags["--" + field.name.strip("_").replace("_", "-")] = kind
    return flags


def _check(config_class: type, command_line: list[Given], prog: str) -> None:
    known = flag_types(config_class)
    switches = {"--no-" + flag[2:] for flag, kind in known.items() if kind is bool}
    for given in command_line:
        if not given.flag:
            raise UserError(f"{prog} has no use for {given.values[0]!r}: every value follows its flag, see --help")
        if given.flag in switches:
            _check_values(given, bool)
        elif given.flag in known:
            _check_values(given, known[given.flag])
        else:
            raise UserError(f"{prog} has no flag {given.written}{_nearest(given.flag, [*known, *switches])}")


def _nearest(flag: str, known: list[str]) -> str:
    near = suggestion(flag, known)
    return near if "did you mean" in near else "; see --help"


def _check_values(given: Given, kind: Any) -> None:
    """Raises UserError unless tyro could make a `kind` of the values; types it does not know it leaves to tyro."""
    flag, values = given.written, given.values
    if get_origin(kind) in (Union, types.UnionType) and len(options := set(get_args(kind)) - {type(None)}) == 1:
        if values == ["None"]:
            return
        (kind,) = options
    if kind is bool:
        if values:
            name = given.flag.removeprefix("--no-").removeprefix("--")
            raise UserError(f"{flag} takes no value, but got {values[0]!r}; write --{name} or --no-{name}")
        return
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            group = get_args(items[0]) if get_origin(items[0]) is tuple else (items[0],)
            if len(values) % len(group):
                raise UserError(f"{flag} takes {len(group)} values for each, and {len(values)} cannot be divided so")
            items = group * (len(values) // len(group))
        if len(values) != len(items):
            raise UserError(f"{flag} takes {len(items)} values, not {len(values)}")
    else:
        items = (kind,)
        if not values:
            raise UserError(f"{flag} needs a value{_expected(kind) or f'; one that begins with -- goes {flag}=VALUE'}")
        if len(values) > 1:
            raise UserError(f"{flag} takes one value; {values[1]!r} is one too many (put a text with spaces in quotes)")
    for value, item in zip(values, items):
        _check_value(flag, value, item)


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f": one of {', '.join(map(str, get_args(kind)))}"
    return {int: ": a whole number", float: ": a number"}.get(kind, "")


def _check_value(flag: str, value: str, kind: Any) -> None:
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        if value not in choices:
            raise UserError(f"{flag} {value} is unknown{suggestion(value, choices)}")
    elif kind in (int, float):
        try:
            kind(value)
        except ValueError:
            raise UserError(f"{flag} {value!r} is not {_expected(kind)[2:]}") from None


def run_main(function: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code: the one place where exceptions become codes and messages.

    0 done (or what `function` returns), 2 the user's mistake, a full disk or memory, in one line, 130 interrupted,
    1 anything else, with its traceback. What standard output's encoding lacks is shown as `\\u5e3d`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = function() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _tell(str(error), 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away, as `| head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return 1
        place = f"{error.filename}: " if error.filename else ""
        return _tell(f"{place}the disk is full; free some space and run again, with --resume where it was training", 2)
    except Exception as error:
        if told := shortage(error):
            return _tell(told, 2)
        traceback.print_exc()
        return 1


def _tell(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
