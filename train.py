"""`python train.py STAGE [flags]`: parses, calls the stage, nothing else. `python train.py` lists the stages."""

from __future__ import annotations

import sys

from instructgpt.flags import run_main


def main() -> int:
    from instructgpt.stages import main as run_stage  # torch takes seconds to import: inside, where Ctrl-C is handled

    return run_stage(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run_main(main))
