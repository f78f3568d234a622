"""Two processes of a data-parallel run make the very update that one process makes by accumulating."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from instructgpt.objectives.lm import Loss
from instructgpt.runtime import Precision, Ranks, join_ranks
from instructgpt.training.loop import FitConfig, Hooks, fit


class Numbers:
    index = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.index += 1
        return self.index

    def state(self):
        return {"index": self.index}

    def restore(self, state):
        self.index = state["index"]


def train(ranks: Ranks, micro_batches: int) -> torch.Tensor:
    weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))

    def loss_fn(batch: int) -> Loss:
        if batch % 5 == 0:  # one rank has nothing to train on and must still take part
            return Loss(torch.zeros((), dtype=torch.float64), torch.tensor(0.0))
        inputs = torch.randn(batch % 3 + 1, 3, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)
        return Loss((inputs @ weight - 1).square().sum(), torch.tensor(float(len(inputs))))

    config = FitConfig(max_steps=6, micro_batches=micro_batches, warmup_steps=1, learning_rate=0.1)
    precision = Precision(torch.float64, None, False)
    fit(
        {"w": weight}, Numbers(), loss_fn, config, Hooks(), device=torch.device("cpu"), precision=precision, ranks=ranks
    )
    return weight.detach()


def run_rank(rank: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=Path(folder, "port").read_text()
    )
    torch.set_num_threads(1)
    torch.save(train(join_ranks(torch.device("cpu")), micro_batches=2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_equal_accumulation(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, train(Ranks(), micro_batches=4), rtol=1e-12, atol=1e-12)
