"""What judge and racer say to each other arrives as it was, and nothing else does."""

from __future__ import annotations

import io

import numpy as np
import pytest

from instructgpt.course.race.channel import Silent, receive, receive_array, send


def test_what_is_sent_arrives() -> None:
    pipe = io.BytesIO()
    for said in ({"error": "no\nnever"}, np.arange(6, dtype=np.int64).reshape(2, 3), {"flops": 3}):
        send(pipe, said)
    pipe.seek(0)
    assert receive(pipe) == {"error": "no\nnever"}
    assert receive_array(pipe, "int64").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert receive(pipe) == {"flops": 3}


@pytest.mark.parametrize(
    "said",
    [
        b"", b"hello\n", b"[1]\n", b'{"shape": [2], "dtype": "object"}\n01', b'{"shape": [-1], "dtype": "int64"}\n',
        b'{"shape": [2], "dtype": "int64"}\n0123', b'{"shape": [99999999999], "dtype": "int64"}\n', b'{"shape": 3}\n',
        b'{"shape": [true], "dtype": "int64"}\n01234567',
    ],
)  # fmt: skip
def test_what_is_no_array_is_refused(said: bytes) -> None:
    with pytest.raises(Silent):
        receive_array(io.BytesIO(said), "int64")
