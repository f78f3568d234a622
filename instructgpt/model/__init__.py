"""The one decoder-only Transformer, its cache, its backends and the arithmetic of its size."""

from instructgpt.model.backend import BACKENDS, Backend, resolve_backend
from instructgpt.model.cache import Feed, PagedCache, Sequences, Table
from instructgpt.model.transformer import Transformer

__all__ = ["BACKENDS", "Backend", "Feed", "PagedCache", "Sequences", "Table", "Transformer", "resolve_backend"]
