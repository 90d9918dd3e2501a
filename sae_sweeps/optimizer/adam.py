"""Adam over parameters as they lie in memory."""

from typing import Annotated, NamedTuple, final

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adam import adam

from sae_sweeps.engine import device
from sae_sweeps.interfaces import Optimizer


class Moments(NamedTuple):
    """What is remembered of a parameter; the names stand in checkpoints."""

    step: Tensor
    """Steps made so far, a float32 scalar."""
    exp_avg: Tensor
    """Running mean of its gradients, as it is handed over: some are transposed."""
    exp_avg_sq: Tensor
    """Running mean of their squares, likewise."""


@final
class Adam(Optimizer):
    """PyTorch's fused Adam, with a learning rate for each parameter (arXiv 1412.6980).

    On CPUs it copies gradients that do not lie row by row, and reads moments as if they lay as
    their parameter does, which those from a file do not. So a matrix that lies column by column is
    handed over as its transpose, which shares its memory; moments have the transpose's shape.

    It is PyTorch's function, since the first `torch.optim.Optimizer` of a process imports
    TorchDynamo, which takes as long as torch itself.
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
        self.trained, self.factors = parameters, factors
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2
        self.state: dict[int, Moments] = {}
        """By the parameter's index; of those that had a gradient."""
        self._divisor: Tensor | None = None

    def clip(self, longest: float) -> Float[Tensor, ""]:
        """On CUDA what would shorten the gradients is kept: the kernel divides as it reads them."""
        if not device.has_fused_kernels(self.trained[0].device):
            return super().clip(longest)
        grads = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        self._divisor = ((norm + 1e-6) / longest).clamp(min=1)
        return norm

    def zero_grad(self) -> None:
        for parameter in self.trained:
            parameter.grad = None

    @torch.no_grad()
    def update(self, lr: float) -> None:
        given = [index for index, p in enumerate(self.trained) if p.grad is not None]
        for factor in dict.fromkeys(self.factors):
            # Together, since every call of an accelerator takes as long as small parameters do.
            some = [index for index in given if self.factors[index] == factor]
            if some:
                self._update(some, lr * factor)
        self._divisor = None
        # The fused kernel does not tell; whoever still wants something of the old values must know.
        torch.autograd.graph.increment_version(self.trained)

    def _update(self, indices: list[int], lr: float) -> None:
        parameters = [self.trained[index] for index in indices]
        stored = [_turned(parameter, parameter.detach()) for parameter in parameters]
        for index, values in zip(indices, stored, strict=True):
            if index not in self.state:
                step = torch.zeros((), dtype=torch.float32, device=values.device)
                moments = torch.zeros_like(values), torch.zeros_like(values)
                self.state[index] = Moments(step, *moments)
        kept = [self.state[index] for index in indices]
        adam(
            stored,
            [_turned(p, p.grad).contiguous() for p in parameters if p.grad is not None],
            [moments.exp_avg for moments in kept],
            [moments.exp_avg_sq for moments in kept],
            [],
            [moments.step for moments in kept],
            fused=True,
            grad_scale=self._divisor,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def forget(self, parameter: nn.Parameter, dim: int, latents: Int[Tensor, " n"]) -> None:
        for moment in self.moments(parameter):
            moment.index_fill_(dim, latents, 0)

    def moments(self, parameter: nn.Parameter) -> list[Tensor]:
        """What is remembered of a parameter, in its shape."""
        index = next(i for i, other in enumerate(self.trained) if other is parameter)
        kept = self.state.get(index)
        return [_turned(parameter, moment) for moment in kept[1:]] if kept else []

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": tensor
            for index, kept in self.state.items()
            for name, tensor in kept._asdict().items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for index, parameter in enumerate(self.trained):
            if f"{index}.{Moments._fields[0]}" in tensors:
                kept = (tensors[f"{index}.{name}"] for name in Moments._fields)
                self.state[index] = Moments(*(tensor.to(parameter.device) for tensor in kept))


def _turned(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """`tensor`, transposed if `parameter` lies column by column in memory."""
    by_column = (
        parameter.ndim == 2 and parameter.T.is_contiguous() and not parameter.is_contiguous()
    )
    return tensor.T if by_column else tensor
