"""What judge and racer say to each other: a line of JSON, or an array of numbers. Nothing that arrives is executed."""

from __future__ import annotations

import json
import math
from typing import IO, Any

import numpy as np

from instructgpt.errors import UserError
from instructgpt.strict_json import to_json

_LARGEST = 1 << 30
"""Bytes."""


class Silent(Exception):
    """The other side has gone, or does not say what it should."""


def send(stream: IO[bytes], said: dict[str, Any] | np.ndarray) -> None:
    if isinstance(said, dict):
        stream.write(to_json(said).encode() + b"\n")
    else:
        stream.write(to_json({"shape": said.shape, "dtype": said.dtype.name}).encode() + b"\n")
        stream.write(np.ascontiguousarray(said).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any]:
    """A line. Raises Silent where there is none."""
    try:
        found = json.loads(stream.readline(1 << 20))
    except ValueError:
        raise Silent from None
    if not isinstance(found, dict):
        raise Silent
    return found


def receive_array(stream: IO[bytes], dtype: str) -> np.ndarray:
    """An array of this dtype. Raises Silent where there is none, UserError where what went wrong is said instead."""
    head = receive(stream)
    if "error" in head:
        raise UserError(str(head["error"]))
    shape = head.get("shape")
    if head.get("dtype") != dtype or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Silent
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > _LARGEST or len(data := stream.read(size)) != size:
        raise Silent
    return np.frombuffer(data, dtype).reshape(shape)
