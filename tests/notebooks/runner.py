"""Runs a notebook as Jupyter would, and compares what it prints with what is stored in it.

    python -m tests.notebooks.runner notebooks/01_tokens.ipynb            # what differs from what is stored
    python -m tests.notebooks.runner notebooks/01_tokens.ipynb --write    # store what this run prints and draws

What is stored is what is expected. Words must be the same, and so must whole numbers; other numbers may differ by one
unit of their last digit or by a hundredth, and those below 1e-4 are rounding errors, whatever they are. A cell whose
output is less certain says so by a tag in its metadata, one of `TAGS`.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Set
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
TAGS = {
    "trained": "numbers follow from training, which goes elsewhere on another processor: a fifth, whole ones too",
    "varies": "numbers are times or speeds: anything; words are compared",
    "sampled": "what a model says: anything, but something",
    "by-hand": "defines a function that the package has, to show how it is built",
}
"""What a tag says of its cell."""
MIME = {"text/plain", "text/markdown", "text/html", "image/png"}
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)


def run(notebook: NotebookNode) -> NotebookNode:
    """A tidy copy with the outputs of this run, in a process of its own. What a cell raises is raised."""
    ran = copy.deepcopy(notebook)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # two threads add up in another order
        "MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc")),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's warning, on stderr
    }
    client = NotebookClient(
        ran, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}},
        record_timing=False, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    client.execute(env=environment)
    return tidied(ran)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """A copy with nothing in it that another run, or another machine, would write differently for no reason."""
    tidy = copy.deepcopy(notebook)
    tidy.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
    )
    tidy.nbformat, tidy.nbformat_minor = 4, 5
    count = 0
    for place, cell in enumerate(tidy.cells):
        cell.id = f"cell-{place}"
        cell.source = cell.source.strip("\n")
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = tidied_outputs(cell.outputs, count)
    return tidy


def tidied_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """Printed pieces that follow each other are one; a picture needs no words in its place."""
    tidy: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and tidy and tidy[-1].get("name") == output.name:
            tidy[-1].text += output.text
            continue
        kept = copy.deepcopy(output)
        if "data" in kept:
            kept.metadata = NotebookNode()
            kept.data = NotebookNode({kind: value for kind, value in kept.data.items() if kind in MIME})
            if "image/png" in kept.data:
                kept.data.pop("text/plain", None)
        if "execution_count" in kept:
            kept.execution_count = count
        tidy.append(kept)
    return tidy


# ---- what differs


def printed(cell: NotebookNode) -> list[str]:
    """The lines of text that a cell gave, warnings left out."""
    pieces: list[str] = []
    for output in cell.outputs:
        if output.get("name") == "stdout":
            pieces.append(output.text)
        elif "text/plain" in output.get("data", {}):
            pieces.append(output.data["text/plain"] + "\n")
    return "".join(pieces).splitlines()


def warned(output: NotebookNode) -> str:
    return output.text if output.get("name") == "stderr" else ""


def pictures(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def differences(stored: NotebookNode, ran: NotebookNode) -> list[str]:
    """What a run gave that is not what is stored, a line each; none if it is."""
    found = []
    for place, (expected, got) in enumerate(zip(stored.cells, ran.cells)):
        if expected.cell_type != "code":
            continue
        where, tags = f"cell {place}", set(expected.metadata.get("tags", ()))
        if pictures(expected) != pictures(got):
            found.append(f"{where}: {pictures(got)} pictures, not {pictures(expected)}")
        found += [f"{where}: warns {text!r}" for output in got.outputs if (text := warned(output))]
        found += [f"{where}: {each}" for each in line_differences(printed(expected), printed(got), tags)]
    return found


def line_differences(expected: list[str], got: list[str], tags: Set[str] = frozenset()) -> list[str]:
    """The lines that differ, by what a cell's tags allow."""
    if "sampled" in tags:
        return [] if bool(expected) == bool(got) else ["something is printed in one run only"]
    if len(expected) != len(got):
        return [f"{len(got)} lines, not {len(expected)}"]
    return [f"{b!r} should be {a!r}" for a, b in zip(expected, got) if not agree(a, b, tags)]


def agree(expected: str, got: str, tags: Set[str] = frozenset()) -> bool:
    """Whether two lines have the same words, and numbers that are near enough."""
    if words(expected) != words(got):
        return False
    if "varies" in tags:
        return True
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(got))
    return all(near(a, b, trained="trained" in tags) for a, b in pairs)


def words(line: str) -> str:
    """A line with its numbers replaced; a number's width is no word."""
    return re.sub(r"\s+", " ", NUMBER.sub("0", line)).strip()


def near(expected: str, got: str, trained: bool) -> bool:
    a, b = (float(number.replace(",", "")) for number in (expected, got))
    if is_whole(expected) and is_whole(got):
        return a == b or (trained and abs(a - b) <= max(2.0, 0.2 * abs(a)))
    if max(abs(a), abs(b)) < 1e-4:
        return True
    relative, units = (0.2, 5) if trained else (0.01, 1)
    return abs(a - b) <= max(relative * abs(a), units * last_digit(expected) * (1 + 1e-9))


def is_whole(number: str) -> bool:
    return re.fullmatch(r"[-+]?[\d,]+", number) is not None


def last_digit(number: str) -> float:
    """What one unit of the last printed digit is worth."""
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    path.write_text(nbformat.writes(notebook, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    files = [Path(each) for each in arguments if each != "--write"]
    found: list[str] = []
    for path in files:
        stored = read(path)
        ran = run(stored)
        if "--write" in arguments:
            write(ran, path)
        else:
            found += [f"{path.name}: {each}" for each in differences(stored, ran)]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
