"""`instructgpt ledger`: compares stages."""

from __future__ import annotations

from instructgpt.stages import assess
from instructgpt.stages.assess import LedgerConfig


def ledger(config: LedgerConfig) -> int:
    """Measures run directories, a row a stage."""
    assess.run(config)
    return 0
