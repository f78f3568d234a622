"""Runs a notebook's code cells in order, in one process and without Jupyter; `--write` keeps what they print and draw.

python tests/notebooks/run_notebook.py notebooks/attention.ipynb --write
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import linecache
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

DOTS_PER_INCH = 70


def run(path: Path) -> dict[str, Any]:
    """The notebook with the outputs of this run: text and pictures. What a cell raises is raised."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        source, name, printed = "".join(cell["source"]), f"{path}:cell-{number}", io.StringIO()
        # Triton reads the source of a kernel where inspect finds it.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with contextlib.redirect_stdout(printed):
            exec(compile(source, name, "exec"), namespace)
        count += 1
        cell["execution_count"], cell["outputs"] = count, outputs(printed.getvalue())
    return notebook


def outputs(printed: str) -> list[dict[str, Any]]:
    """A cell's outputs as a notebook stores them; closes the figures that it drew."""
    found: list[dict[str, Any]] = []
    if printed:
        found.append({"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)})
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, format="png", dpi=DOTS_PER_INCH)
        png = base64.b64encode(picture.getvalue()).decode()
        found.append({"data": {"image/png": png}, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    sys.path.insert(0, str(Path(__file__).parents[2]))
    result = run(target)
    if "--write" in sys.argv:
        target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
