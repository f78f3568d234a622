"""AdamW and Muon over named parameters, with float32 master weights where the model itself is bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instructgpt.settings import NonNegative, Positive, Settings, ShareBelow1

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
    weight_decay: NonNegative = 0.1
    """Decoupled decay (Loshchilov & Hutter 2019) of matrices; vectors (norms, biases) never decay."""


_SAFETY = 1.01
"""bfloat16 may round a singular value above 1, where the polynomials throw it far off: they are stretched a little."""
# Amsel et al. 2025, "The Polar Express", for singular values from 1e-3 on: each polynomial is the best one after those
# before it. Three of them do what five of one kind do (Jordan et al. 2024, "Muon").
_POLYNOMIALS = tuple(
    (a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    )
)


def orthogonalize(update: Tensor, iterations: int = len(_POLYNOMIALS)) -> Tensor:
    """Moves every singular value of each matrix in (N, rows, cols) towards 1 by X <- aX + b(XXᵀ)X + c(XXᵀ)²X.

    Those above a thousandth of the norm come to lie in about [0.87, 1.13] after five iterations, in [0.18, 1.87] after
    three; smaller ones grow towards it.
    """
    tall = update.size(-2) > update.size(-1)
    x = update.mT if tall else update  # the Gram matrix of the short side is the cheap one
    x = x / (_SAFETY * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # spectral norm <= Frobenius norm < 1
    for a, b, c in _POLYNOMIALS[:iterations]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix update is orthogonalised (Jordan et al. 2024, "Muon").

    Matrices of one shape are stacked and iterated together. `compute_dtype` is what the iterations run in: they are
    insensitive to rounding, so bfloat16 serves wherever it is faster.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        compute_dtype: torch.dtype,
        iterations: int = len(_POLYNOMIALS),
    ):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.compute_dtype, self.iterations = compute_dtype, iterations

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        looked_ahead = []
        for parameter in parameters:
            buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            grad = parameter.grad
            assert grad is not None
            buffer.lerp_(grad, 1 - group["momentum"])
            looked_ahead.append(grad.lerp(buffer, group["momentum"]))  # Nesterov: one step ahead along the momentum
        updates = orthogonalize(torch.stack(looked_ahead).to(self.compute_dtype), self.iterations)
        updates = updates.to(parameters[0].dtype)
        rows, cols = parameters[0].shape
        # A wide-to-tall matrix gets a larger step, so that its outputs move as much as a square one's.
        rate = group["lr"] * max(1.0, rows / cols) ** 0.5
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


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
        muon = {n for n, p in self.masters.items() if config.optimizer == "muon" and is_hidden_matrix(n, p)}
        others = {n: p for n, p in self.masters.items() if n not in muon}
        groups = [
            {"params": [p for p in others.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in others.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:
            self.optimizers.append(
                torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
            )
        if muon:
            matrices = [self.masters[n] for n in self.masters if n in muon]
            self.optimizers.append(
                Muon(
                    matrices,
                    config.muon_learning_rate,
                    config.momentum,
                    config.weight_decay,
                    compute_dtype,
                    config.muon_iterations,
                )
            )
        self._peaks = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

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

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates."""
        for optimizer, peaks in zip(self.optimizers, self._peaks):
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = peak * factor
            optimizer.step()
        self.copy_masters()

    @torch.no_grad()
    def copy_masters(self) -> None:
        for name, master in self.masters.items():
            if self.parameters[name] is not master:
                self.parameters[name].copy_(master)

    def zero_grad(self) -> None:
        for master in self.masters.values():
            master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Master weights and moments, by `KIND/PARAMETER`."""
        tensors = {f"master/{name}": p.detach() for name, p in self.masters.items()}
        for optimizer in self.optimizers:
            for name, parameter in self.masters.items():
                for kind, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{kind}/{name}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `state` gave. Raises KeyError when a parameter is missing."""
        owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for name, master in self.masters.items():
            master.copy_(tensors[f"master/{name}"])
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind != "master" and name in self.masters:
                master = self.masters[name]
                owners[id(master)].state[master][kind] = value.clone().to(master.device)
        self.copy_masters()
