"""One file a command of `python -m instructgpt`; cli.py says which there are."""
