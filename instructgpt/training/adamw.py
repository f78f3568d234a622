"""AdamW on lists of tensors: PyTorch's fused kernel, one launch for all tensors of a group on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_lists: Any = torch
"""PyTorch's operators on lists of tensors, a launch for all of them: the types of their arguments are not public."""


class AdamW:
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019).

    `step` decides nothing on the host: whether this is a step at all is a flag on the device, and so is the count of
    steps that corrects the moments' bias.
    """

    epsilon = 1e-8

    def __init__(
        self, parameters: dict[str, nn.Parameter], rate: float, betas: tuple[float, float], weight_decay: float
    ):
        """rate: the peak learning rate."""
        self.parameters, self.rate, self.betas, self.weight_decay = parameters, rate, betas, weight_decay
        self.means = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.steps = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, factor: float, is_good: Tensor) -> None:
        """One update of all that has a gradient at `factor` times the peak rate; where `is_good` is 0, none."""
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        if not names:
            return
        steps, is_bad = [self.steps[name] for name in names], 1 - is_good
        _lists._foreach_add_(steps, [is_good] * len(steps))
        _lists._fused_adamw_(
            [self.parameters[name] for name in names],
            [self.parameters[name].grad for name in names],
            [self.means[name] for name in names],
            [self.squares[name] for name in names],
            [],
            steps,
            lr=self.rate * factor, beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.weight_decay,
            eps=self.epsilon, amsgrad=False, maximize=False,
            found_inf=None if is_bad.device.type == "mps" else is_bad,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """By `KIND/PARAMETER`; the tensors themselves, which `restore` writes into."""
        kinds = {"exp_avg": self.means, "exp_avg_sq": self.squares, "step": self.steps}
        return {f"{kind}/{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}
