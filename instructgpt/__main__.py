"""`python -m instructgpt COMMAND [flags]`, and the console script `instructgpt`."""

from __future__ import annotations

import sys

from instructgpt.flags import run_main


def run() -> int:
    from instructgpt.cli import run_command  # torch takes seconds to import: inside, where Ctrl-C is handled

    return run_command(sys.argv[1:])


def main() -> int:
    return run_main(run)


if __name__ == "__main__":
    sys.exit(main())
