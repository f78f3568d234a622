"""AdamW on lists of tensors: PyTorch's fused kernel, one launch for all tensors of a group on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instructgpt.training.moments import SMALL, Moments, StateFormat

_lists: Any = torch
"""PyTorch's operators on lists of tensors, a launch for all of them: the types of their arguments are not public."""
_AT_ONCE = 1 << 22
"""Numbers whose moments are float32 at a time, where they are kept in fewer bits: whole blocks of them."""


class AdamW:
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019).

    `step` decides nothing on the host: whether this is a step at all is a flag on the device, and so is the count of
    steps that corrects the moments' bias.
    """

    epsilon = 1e-8

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        state_format: StateFormat = "float32",
    ):
        """rate: the peak learning rate. state_format: of the moments; small tensors keep them in float32."""
        self.parameters, self.rate, self.betas, self.weight_decay = parameters, rate, betas, weight_decay
        self.steps = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.narrow: dict[str, tuple[Moments, Moments]] = {}
        """Means and mean squares that are kept in fewer bits, of the flattened parameter."""
        for name, p in parameters.items():
            if state_format == "float32" or p.numel() < SMALL or p.dtype != torch.float32:
                self.means[name], self.squares[name] = torch.zeros_like(p), torch.zeros_like(p)
            else:
                flat = p.detach().view(-1)
                self.narrow[name] = Moments(flat, state_format), Moments(flat, state_format, is_square=True)
        self.roundings = np.zeros((), np.int64)
        """Updates so far, on the host: rounding at random is seeded by it, and so the same after a resumption."""

    @torch.no_grad()
    def step(self, factor: float, is_good: Tensor) -> None:
        """One update of all that has a gradient at `factor` times the peak rate; where `is_good` is 0, none."""
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        if not names:
            return
        _lists._foreach_add_([self.steps[name] for name in names], [is_good] * len(names))
        wide = [name for name in names if name in self.means]
        if wide:
            self._update(
                [self.parameters[name] for name in wide], [self.parameters[name].grad for name in wide],
                [self.means[name] for name in wide], [self.squares[name] for name in wide],
                [self.steps[name] for name in wide], factor, is_good,
            )  # fmt: skip
        if self.narrow:
            self.roundings += 1
            random = torch.Generator(is_good.device).manual_seed(int(self.roundings))
            for name in names:
                if name in self.narrow:
                    self._step_in_parts(name, factor, is_good, random)

    def _step_in_parts(self, name: str, factor: float, is_good: Tensor, random: torch.Generator) -> None:
        """One parameter's update, some numbers after the others: so few are float32 at a time."""
        parameter, (means, squares) = self.parameters[name], self.narrow[name]
        assert parameter.grad is not None
        flat, gradient = parameter.view(-1), parameter.grad.reshape(-1)
        for start in range(0, flat.numel(), _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, flat.numel()))
            mean, square = means.read(part), squares.read(part)
            steps = [self.steps[name]]
            self._update([flat[part]], [gradient[part]], [mean], [square], steps, factor, is_good)
            means.write(mean, is_good, random, part)
            squares.write(square, is_good, random, part)

    def _update(
        self, parameters: list[Any], gradients: list[Any], means: list[Tensor], squares: list[Tensor],
        steps: list[Tensor], factor: float, is_good: Tensor,
    ) -> None:  # fmt: skip
        """Writes to parameters, means and squares; none where `is_good` is 0. `steps` count this update:

        m = β₁·m + (1-β₁)·g,   v = β₂·v + (1-β₂)·g²
        θ = θ - η·λ·θ - η · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε),   η = factor·rate
        """
        is_bad = 1 - is_good
        _lists._fused_adamw_(
            parameters, gradients, means, squares, [], steps,
            lr=self.rate * factor, beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.weight_decay,
            eps=self.epsilon, amsgrad=False, maximize=False,
            found_inf=None if is_bad.device.type == "mps" else is_bad,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """By `KIND/PARAMETER`; the tensors themselves, which `restore` writes into."""
        kinds = {"exp_avg": self.means, "exp_avg_sq": self.squares, "step": self.steps}
        found = {f"{kind}/{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}
        for name, (means, squares) in self.narrow.items():
            kept = means.state("exp_avg") | squares.state("exp_avg_sq")
            found |= {f"{kind}/{name}": tensor for kind, tensor in kept.items()}
        return found | (
            {f"roundings/{next(iter(self.narrow))}": torch.from_numpy(self.roundings)} if self.narrow else {}
        )
