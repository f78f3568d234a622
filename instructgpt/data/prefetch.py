"""Batches made in the background while the model computes on the one before."""

from __future__ import annotations

import contextlib
import copy
import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from instructgpt.data.batch import BatchStream, mapped


class Prefetched:
    """The batches of a stream, made by a thread up to `depth` ahead (a `BatchStream` itself).

    Only for streams that do not depend on the weights. `state()` is that of the batches handed out, not of those made,
    so that resuming repeats and skips nothing. What the stream raises is raised here, at the batch it belongs to.

    device: a CUDA device to which the batches, dataclasses of tensors, are copied beside what it computes: from pinned
    memory and on a stream of their own.
    """

    def __init__(self, stream: BatchStream, depth: int = 2, device: torch.device | None = None):
        self._stream, self._depth, self._device = stream, depth, device
        self._state = copy.deepcopy(stream.state())
        self._worker: _Worker | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._worker is None:
            self._worker = _Worker(self._stream, self._depth, self._device)
        made = self._worker.made.get()
        if isinstance(made, BaseException):
            self.close()
            raise made
        batch, copied, self._state = made
        return batch if copied is None else _taken_over(batch, copied)

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(self._state)

    def restore(self, state: dict[str, Any]) -> None:
        self._state = copy.deepcopy(state)
        self._end_thread()
        self._stream.restore(state)

    def close(self) -> None:
        """Ends the thread, and takes the stream back to the last batch that was handed out."""
        self._end_thread()
        self._stream.restore(self._state)

    def _end_thread(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class _Worker:
    def __init__(self, stream: BatchStream, depth: int, device: torch.device | None):
        self.made: queue.Queue[Any] = queue.Queue(depth)
        self._stream = stream
        self._copies = None if device is None else torch.cuda.Stream(device)
        self._is_wanted = True
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._is_wanted:
            try:
                batch, copied = next(self._stream), None
                if self._copies is not None:
                    batch, copied = _sent(batch, self._copies)
                made: Any = (batch, copied, copy.deepcopy(self._stream.state()))
            except BaseException as error:
                made = error
            self.made.put(made)
            if isinstance(made, BaseException):
                return

    def stop(self) -> None:
        self._is_wanted = False
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # room for what the thread is about to hand over
                self.made.get(timeout=0.01)
        self._thread.join()


def _sent(batch: Any, stream: torch.cuda.Stream) -> tuple[Any, Any]:
    """The batch on the stream's device, and the event after which it is there."""
    with torch.cuda.stream(stream):
        return (
            # An empty tensor has no memory to pin.
            mapped(batch, lambda t: (t.pin_memory() if t.numel() else t).to(stream.device, non_blocking=True)),
            stream.record_event(),
        )


def _taken_over(batch: Any, copied: torch.cuda.Event) -> Any:
    """The batch for use on the current stream, which waits for the copy; the host does not."""

    def held(tensor: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(copied)
        tensor.record_stream(stream)  # else its memory could be given away while it is still read
        return tensor

    return mapped(batch, held)
