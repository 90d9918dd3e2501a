"""All of a run's state in training as named tensors and numbers, and back."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_sweeps.training.fine_tuner import FineTuner
from sae_sweeps.training.trainer import Trainer


def take(trainer: Trainer, fine_tuner: FineTuner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state; tensors are the run's own, so write them before training goes on."""
    tensors = {"tokens_since_fired": trainer.tokens_since_fired}
    for name, module in _modules(trainer, fine_tuner).items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in _optimizers(trainer, fine_tuner).items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
    numbers = {
        "tokens": trainer.tokens,
        "replaced": trainer.replaced,
        "fine_tuned": fine_tuner.tokens,
    }
    return tensors, numbers


def restore(
    trainer: Trainer, fine_tuner: FineTuner, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put a state back into a run that was just built."""
    for name, module in _modules(trainer, fine_tuner).items():
        module.load_state_dict(_below(name, tensors))
    for name, optimizer in _optimizers(trainer, fine_tuner).items():
        moments: dict[int, dict[str, Tensor]] = {}
        for path, value in _below(name, tensors).items():
            index, _, key = path.partition(".")
            moments.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    trainer.tokens_since_fired.copy_(tensors["tokens_since_fired"])
    trainer.tokens, trainer.replaced = numbers["tokens"], numbers["replaced"]
    fine_tuner.tokens = numbers["fine_tuned"]


def _modules(trainer: Trainer, fine_tuner: FineTuner) -> dict[str, nn.Module]:
    return {
        "sae": trainer.sae,
        "aux_loss": trainer.aux_loss,
        "resampling": trainer.resampling,
        "fine_tune": fine_tuner.fine_tune,
    }


def _optimizers(trainer: Trainer, fine_tuner: FineTuner) -> dict[str, torch.optim.Optimizer]:
    return {"optimizer": trainer.optimizer, "fine_tune_optimizer": fine_tuner.optimizer}


def _below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{name}."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
