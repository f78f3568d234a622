"""Muon (Jordan et al. 2024): momentum whose matrix update is orthogonalised. Matrices of one shape are one stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instructgpt.training.moments import Moments, StateFormat

_lists: Any = torch
"""PyTorch's operators on lists of tensors, a launch for all of them: the types of their arguments are not public."""
_SAFETY = 1.01
"""bfloat16 may round a singular value above 1, where the polynomials throw it far off: they are stretched a little."""
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
"""(a, b, c) of each iteration, for singular values from 1e-3 on: each polynomial is the best one after those before it
(Amsel et al. 2025, "The Polar Express"). Three of them do what five of one kind do (Jordan et al. 2024, "Muon")."""


def orthogonalize(update: Tensor, iterations: int = len(_POLYNOMIALS)) -> Tensor:
    """Moves every singular value of each matrix in (N, rows, cols) towards 1 by X <- aX + b(XXᵀ)X + c(XXᵀ)²X.

    The i-th iteration's (a, b, c) are `_POLYNOMIALS[i]`, made for values in [0, 1]: each matrix is brought there first.
    Those above a thousandth of the norm come to lie in about [0.87, 1.13] after five iterations, in [0.18, 1.87] after
    three; smaller ones grow towards it. Computed in the update's own dtype, which the caller chooses.
    """
    tall = update.size(-2) > update.size(-1)
    x = update.mT if tall else update  # the Gram matrix of the short side is the cheap one
    x = x / (_SAFETY * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # spectral norm <= Frobenius norm < 1
    for a, b, c in _POLYNOMIALS[:iterations]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(frozen=True)
class _Stack:
    """Parameters of one shape, and what they share."""

    parameters: dict[str, nn.Parameter]
    momentum: Moments
    """(N, rows, cols), in the order of the parameters."""


class Muon:
    """Momentum whose matrix update is orthogonalised (Jordan et al. 2024, "Muon").

    `compute_dtype` is what the iterations run in: they are insensitive to rounding, so bfloat16 serves wherever it is
    faster. As with AdamW, `step` decides nothing on the host.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        rate: float,
        momentum: float,
        weight_decay: float,
        compute_dtype: torch.dtype,
        iterations: int = len(_POLYNOMIALS),
        state_format: StateFormat = "float32",
    ):
        """rate: the peak learning rate. state_format: of the momentum."""
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        self.compute_dtype, self.iterations = compute_dtype, iterations
        by_shape: dict[torch.Size, dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            by_shape.setdefault(parameter.shape, {})[name] = parameter
        self.stacks = [
            _Stack(named, Moments(next(iter(named.values())).detach().expand(len(named), -1, -1), state_format))
            for named in by_shape.values()
        ]

    @torch.no_grad()
    def step(self, factor: float, is_good: Tensor) -> None:
        """One update at `factor` times the peak rate; where `is_good` is 0, none. No gradient counts as 0."""
        for stack in self.stacks:
            parameters = list(stack.parameters.values())
            if any(p.grad is not None for p in parameters):
                gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
                momentum = stack.momentum.read()
                self._update(parameters, torch.stack(gradients), momentum, self.rate * factor * is_good, is_good)
                stack.momentum.write(momentum, is_good, None)

    def _update(
        self, parameters: list[nn.Parameter], gradients: Tensor, momentum: Tensor, rate: Tensor, is_good: Tensor
    ) -> None:
        """gradients and momentum (N, rows, cols), rate and is_good scalars."""
        gradients = torch.where(is_good > 0, gradients, 0.0)  # what is not finite would not become 0 by a factor
        momentum.lerp_(gradients, (1 - self.momentum) * is_good)
        ahead = gradients.lerp_(momentum, self.momentum)  # Nesterov: one step ahead along the momentum
        updates = orthogonalize(ahead.to(self.compute_dtype), self.iterations).to(momentum.dtype)
        rows, cols = momentum.shape[1:]
        # A wide-to-tall matrix gets a larger step, so that its outputs move as much as a square one's.
        updates = updates * (-rate * max(1.0, rows / cols) ** 0.5)
        _lists._foreach_mul_(parameters, 1 - rate * self.weight_decay)
        _lists._foreach_add_(parameters, updates.unbind())

    def state(self) -> dict[str, Tensor]:
        """By `KIND/PARAMETER`; the tensors themselves, which `restore` writes into."""
        return {
            f"{kind}/{name}": tensor
            for stack in self.stacks
            for kind, stacked in stack.momentum.state("momentum").items()
            for name, tensor in zip(stack.parameters, stacked)
        }
