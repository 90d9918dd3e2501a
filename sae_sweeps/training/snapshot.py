"""All of a run's state in training as named tensors and numbers, and back."""

from typing import Any

from torch import Tensor, nn

from sae_sweeps.interfaces import Optimizer
from sae_sweeps.training.fine_tuner import FineTuner
from sae_sweeps.training.trainer import Trainer


def take(trainer: Trainer, fine_tuner: FineTuner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state; tensors are the run's own, so write them before training goes on."""
    tensors = {"tokens_since_fired": trainer.tokens_since_fired}
    for name, module in _modules(trainer, fine_tuner).items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in _optimizers(trainer, fine_tuner).items():
        tensors |= {f"{name}.{key}": value for key, value in optimizer.tensors().items()}
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
        optimizer.restore(_below(name, tensors))
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


def _optimizers(trainer: Trainer, fine_tuner: FineTuner) -> dict[str, Optimizer]:
    return {"optimizer": trainer.optimizer, "fine_tune_optimizer": fine_tuner.optimizer}


def _below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{name}."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
