"""Adam over parameters as they lie in memory."""

from typing import Any

import torch
from torch import Tensor, nn


class Adam(torch.optim.Adam):
    """PyTorch's fused Adam, with a learning rate for each parameter.

    On CPUs it copies gradients that do not lie row by row, and reads moments as if they lay as
    their parameter does, which those from a file do not. So a matrix that lies column by column is
    handed over as its transpose, which shares its memory; moments have the transpose's shape.
    """

    def __init__(
        self, parameters: list[nn.Parameter], factors: list[float], betas: tuple[float, float]
    ) -> None:
        """Take parameters, and how many times the common learning rate each is to have."""
        self.trained = parameters
        groups = [
            {"params": [nn.Parameter(turned(parameter, parameter.detach()))], "factor": factor}
            for parameter, factor in zip(parameters, factors, strict=True)
        ]
        super().__init__(groups, betas=betas, fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        del set_to_none
        for parameter in self.trained:
            parameter.grad = None

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """Make a step at the common learning rate `lr`."""
        for parameter, group in zip(self.trained, self.param_groups, strict=True):
            (stored,), grad = group["params"], parameter.grad
            stored.data = turned(parameter, parameter.detach())
            stored.grad = None if grad is None else turned(parameter, grad).contiguous()
            group["lr"] = lr * group["factor"]
        self.step()
        # The fused kernel does not tell; whoever still wants something of the old values must know.
        torch.autograd.graph.increment_version(self.trained)

    def moments(self, parameter: nn.Parameter) -> list[Tensor]:
        """What is remembered of a parameter, in its shape."""
        index = next(i for i, other in enumerate(self.trained) if other is parameter)
        kept: dict[str, Any] = self.state[self.param_groups[index]["params"][0]]
        return [turned(parameter, moment) for moment in kept.values() if moment.ndim]


def turned(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """`tensor`, transposed if `parameter` lies column by column in memory."""
    by_column = (
        parameter.ndim == 2 and parameter.T.is_contiguous() and not parameter.is_contiguous()
    )
    return tensor.T if by_column else tensor
