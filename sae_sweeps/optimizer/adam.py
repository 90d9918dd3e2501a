"""Adam over parameters as they lie in memory."""

from typing import Annotated, Any, final

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Int
from torch import Tensor, nn

from sae_sweeps.interfaces import Optimizer


@final
class Adam(Optimizer):
    """PyTorch's fused Adam, with a learning rate for each parameter (arXiv 1412.6980).

    On CPUs it copies gradients that do not lie row by row, and reads moments as if they lay as
    their parameter does, which those from a file do not. So a matrix that lies column by column is
    handed over as its transpose, which shares its memory; moments have the transpose's shape.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        factors: list[float],
        *,
        lr: Annotated[float, Gt(0)],
        beta1: Annotated[float, Ge(0), Lt(1)],
        beta2: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        self.trained, self.lr = parameters, lr
        groups = [
            {"params": [nn.Parameter(_turned(parameter, parameter.detach()))], "factor": factor}
            for parameter, factor in zip(parameters, factors, strict=True)
        ]
        self.adam = torch.optim.Adam(groups, betas=(beta1, beta2), fused=True)

    def zero_grad(self) -> None:
        for parameter in self.trained:
            parameter.grad = None

    @torch.no_grad()
    def update(self, lr: float) -> None:
        for parameter, group in zip(self.trained, self.adam.param_groups, strict=True):
            (stored,), grad = group["params"], parameter.grad
            stored.data = _turned(parameter, parameter.detach())
            stored.grad = None if grad is None else _turned(parameter, grad).contiguous()
            group["lr"] = lr * group["factor"]
        self.adam.step()
        # The fused kernel does not tell; whoever still wants something of the old values must know.
        torch.autograd.graph.increment_version(self.trained)

    def forget(self, parameter: nn.Parameter, dim: int, latents: Int[Tensor, " n"]) -> None:
        for moment in self.moments(parameter):
            moment.index_fill_(dim, latents, 0)

    def moments(self, parameter: nn.Parameter) -> list[Tensor]:
        """What is remembered of a parameter, in its shape."""
        index = next(i for i, other in enumerate(self.trained) if other is parameter)
        kept: dict[str, Any] = self.adam.state[self.adam.param_groups[index]["params"][0]]
        return [_turned(parameter, moment) for moment in kept.values() if moment.ndim]

    def tensors(self) -> dict[str, Tensor]:
        state = self.adam.state_dict()["state"]
        return {f"{i}.{key}": value for i, kept in state.items() for key, value in kept.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            index, _, key = path.partition(".")
            state.setdefault(int(index), {})[key] = value
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state, "param_groups": groups})


def _turned(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """`tensor`, transposed if `parameter` lies column by column in memory."""
    by_column = (
        parameter.ndim == 2 and parameter.T.is_contiguous() and not parameter.is_contiguous()
    )
    return tensor.T if by_column else tensor
