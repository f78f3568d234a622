"""One file a stage: each builds a model, a stream of batches and a loss, and hands them to `fit`."""

from __future__ import annotations
