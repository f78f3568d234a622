"""The plan of the house, enforced: imports are read from the source, also those inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("kernels", "base"),
    ("text", "world"),
    ("model", "data"),
    ("generation", "objectives", "pretrained"),
    ("training", "evaluation", "inside"),
    ("stages", "serving", "course"),
    ("command line",),
    ("entrance",),
)
"""Rooms by floor, the lowest first. A room imports from lower floors and from itself, never from its neighbour."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Files that stand in no folder of their own.
ROOMS = dict.fromkeys(
    (
        "errors", "settings", "atomic", "strict_json", "figures", "config", "runtime", "flags", "sizes", "shortage",
        "tensors", "html",
    ),
    "base",
)  # fmt: skip
ROOMS |= {"cli": "command line", "commands": "command line", "terminal": "command line"}
ROOMS |= {"__init__": "entrance", "__main__": "entrance"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the project by its dotted name; a package is the name of its folder."""
    found = {}
    for package in ("instructgpt", "kernels"):
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a file imports: our modules by their full names, everything else as written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; name the module in full"
            module = node.module or ""
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield name if name in known else module


MODULES = modules()
GRAPH = {name: sorted(set(imports(path, MODULES))) for name, path in MODULES.items()}


def room(module: str) -> str:
    package, _, rest = module.partition(".")
    first = rest.split(".")[0] or "__init__"
    return "kernels" if package == "kernels" else ROOMS.get(first, first)


def test_every_module_has_a_floor():
    assert {room(module) for module in MODULES} <= FLOOR.keys()


def wrong_way(graph: dict[str, list[str]]) -> list[str]:
    return [
        f"{module} ({room(module)}) imports {name} ({room(name)})"
        for module, names in graph.items()
        for name in names
        if name.split(".")[0] in ("instructgpt", "kernels")
        and room(name) != room(module)
        and FLOOR[room(name)] >= FLOOR[room(module)]
    ]


def test_imports_go_to_a_lower_floor():
    assert wrong_way(GRAPH) == []


def test_the_check_of_floors_sees_what_it_should():
    assert wrong_way({"instructgpt.text.chat": ["instructgpt.data.batch"]})
    assert wrong_way({"instructgpt.model.cache": ["instructgpt.data.batch"]})
    assert wrong_way({"kernels.softmax": ["instructgpt.errors"]})
    assert not wrong_way({"instructgpt.text.chat": ["instructgpt.text.tokenizer", "instructgpt.errors", "numpy"]})


def circle(graph: dict[str, list[str]]) -> list[str]:
    """The modules of one import circle; empty when there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for name in graph.get(module, []):
                if found := visit(name, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def test_no_import_goes_in_a_circle():
    assert circle(GRAPH) == []
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]


def test_nothing_imports_transformers():
    assert [module for module, names in GRAPH.items() if "transformers" in {n.split(".")[0] for n in names}] == []


def test_kernels_import_nothing_of_ours():
    ours = {name for module in GRAPH if module.startswith("kernels") for name in GRAPH[module]}
    assert not {name for name in ours if name.split(".")[0] == "instructgpt"}


def test_the_world_is_pure_python():
    for module, names in GRAPH.items():
        if room(module) == "world":
            foreign = {name for name in names if name.split(".")[0] not in {*sys.stdlib_module_names, "instructgpt"}}
            assert not foreign, f"{module} imports {foreign}"


def test_the_world_is_reached_without_torch():
    program = (
        "import sys, instructgpt\n"
        "assert instructgpt.world.sample('test', n=2, seed=0)\n"
        "print(sorted({'torch', 'numpy', 'sentencepiece', 'tyro'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "[]", "")
