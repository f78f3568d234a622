"""AdamW and Muon over named parameters, with float32 master weights where the model itself is bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instructgpt.settings import NonNegative, Positive, Settings, ShareBelow1
from instructgpt.training.adamw import AdamW
from instructgpt.training.moments import StateFormat
from instructgpt.training.muon import Muon

_lists: Any = torch
"""PyTorch's operators on lists of tensors, a launch for all of them: the types of their arguments are not public."""
Parameters = dict[str, nn.Parameter]


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """How weights are updated."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` updates the hidden matrices with Muon and everything else with AdamW; `adamw` updates all."""
    learning_rate: Positive = 1e-3
    """Peak rate of AdamW. Too high diverges, too low wastes the run."""
    muon_learning_rate: Positive = 0.02
    """Peak rate of Muon, in units of the update's spectral norm: the same value serves most sizes."""
    beta1: ShareBelow1 = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: ShareBelow1 = 0.95
    """AdamW's decay of the gradient's mean square."""
    momentum: ShareBelow1 = 0.95
    """Muon's momentum."""
    muon_iterations: Literal[1, 2, 3, 4, 5] = 5
    """Iterations of Muon's orthogonalisation: fewer are cheaper, and leave singular values further from 1."""
    optimizer_state: StateFormat = "float32"
    """How moments are kept: float32; bfloat16, in half of the memory; int8, in a quarter, blocks sharing a scale."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay (Loshchilov & Hutter 2019) of matrices; vectors (norms, biases) never decay."""


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Muon's share: the matrices between embedding and head. Those two look rows up, a convolution scales channels."""
    return parameter.ndim == 2 and "embedding" not in name and "conv." not in name and not name.startswith("head")


class Optimizer:
    """AdamW, or Muon with AdamW, over named parameters: one `step`, one flat state.

    Where a parameter is bfloat16, a float32 master copy takes the updates and is rounded back into it: an update
    smaller than bfloat16's spacing would otherwise be lost. Gradients gather in the masters' `.grad`.
    """

    def __init__(self, parameters: Parameters, config: OptimizerConfig, compute_dtype: torch.dtype = torch.float32):
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.masters: Parameters = {
            name: p if p.dtype == torch.float32 or p.dtype == torch.float64 else nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }
        muon = {n: p for n, p in self.masters.items() if config.optimizer == "muon" and is_hidden_matrix(n, p)}
        others = {n: p for n, p in self.masters.items() if n not in muon}
        self.parts: list[AdamW | Muon] = [
            AdamW(part, config.learning_rate, (config.beta1, config.beta2), weight_decay, config.optimizer_state)
            for part, weight_decay in (
                ({n: p for n, p in others.items() if p.ndim >= 2}, config.weight_decay),
                ({n: p for n, p in others.items() if p.ndim < 2}, 0.0),
            )
        ]
        if muon:
            self.parts.append(
                Muon(
                    muon, config.muon_learning_rate, config.momentum, config.weight_decay, compute_dtype,
                    config.muon_iterations, config.optimizer_state,
                )
            )  # fmt: skip

    def gather_gradients(self) -> None:
        """Adds the model's gradients to the masters' and clears them, where the two are different tensors."""
        for name, master in self.masters.items():
            parameter = self.parameters[name]
            if parameter is not master and parameter.grad is not None:
                grad = parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None

    def fill_gradients(self) -> None:
        """Gives every parameter without a gradient one of zeros."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    def gradients(self) -> list[Tensor]:
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiplies all gradients by a scalar."""
        if gradients := self.gradients():
            _lists._foreach_mul_(gradients, factor.to(gradients[0]))

    def step(self, factor: float, is_good: Tensor | None = None) -> None:
        """One update at `factor` times the peak learning rates.

        is_good: 0 on the parameters' device forbids it, 1 (or None) allows it: nobody waits for the device to know.
        """
        if is_good is None:
            is_good = torch.ones((), device=next(iter(self.masters.values())).device)
        elif is_good.device.type == "mps" and not is_good:  # its fused kernel takes no flag
            return
        for part in self.parts:
            part.step(factor, is_good)
        self.copy_masters()

    @torch.no_grad()
    def copy_masters(self) -> None:
        copied = [name for name, master in self.masters.items() if self.parameters[name] is not master]
        if copied:
            _lists._foreach_copy_([self.parameters[n] for n in copied], [self.masters[n] for n in copied])

    def zero_grad(self) -> None:
        for master in self.masters.values():
            master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Master weights and moments, by `KIND/PARAMETER`."""
        tensors = {f"master/{name}": p.detach() for name, p in self.masters.items()}
        for part in self.parts:
            tensors |= part.state()
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `state` gave. Raises KeyError when a parameter is missing."""
        for name, held in self.state().items():
            if name.startswith("master/") or name in tensors:  # before its first gradient a parameter had no moments
                held.copy_(tensors[name])
        self.copy_masters()
