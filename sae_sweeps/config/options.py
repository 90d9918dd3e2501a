"""The config's sections without alternatives; their fields are the schema that YAML answers to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The order and size of activation batches; shared by every run of a pack."""

    batch_tokens: int
    """Tokens per training batch."""
    chunk_tokens: int
    """Tokens shuffled together in memory before batches are cut from them."""
    seed: int
    """Rules the order of the data; the run's own `seed` rules everything else."""
    repeat: bool
    """Start over when the data end before `training.tokens`; off, that is an error."""
    calibration_tokens: int
    """Tokens seen before training that set the activations' scale and centre."""
    centre: bool
    """Take the mean off the activations before they are scaled."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How one SAE is optimised: Adam, linear warm-up and decay, all lengths in tokens."""

    tokens: int
    """Tokens the SAE is trained on."""
    lr: float
    """Peak learning rate of Adam, per step."""
    warmup_tokens: int
    """Tokens over which the learning rate rises linearly from zero to `lr`."""
    decay_tokens: int
    """Tokens at the end over which the learning rate falls linearly to zero."""
    beta1: float
    """Adam's decay of the gradient's mean, per step."""
    beta2: float
    """Adam's decay of the gradient's second moment, per step."""
    gradient_clip_norm: float
    """Largest norm of the whole gradient, per step; longer ones are scaled down."""
    dead_window_tokens: int
    """A latent that has not fired for this many tokens counts as dead."""
    log_every_tokens: int
    """Tokens between two rows of `metrics.jsonl`."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Of large products in training; `auto` is bfloat16 on CUDA devices that have it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How a finished SAE is measured, on held-out tokens."""

    tokens: int
    """Held-out tokens for L0, FVU and densities."""
    ce_tokens: int
    """Held-out tokens for the cross-entropy with the SAE spliced into the model."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run's config states; the groups are checked against their own classes."""

    name: str | None
    """The sweep's name and folder; null derives one from the config."""
    seed: int
    """Rules a run's initialisation and rounding."""
    k: float
    """Mean number of active latents per token, for every method."""
    d_sae: int
    """Number of latents."""
    threads: int
    """CPU threads of one run; the runs of a pack train side by side on the cores there are."""
    engine: Literal["auto", "sparse", "dense"]
    """How products with activations are computed; `auto` goes by density, width and device."""
    checkpoint_minutes: float
    """Minutes of training between two checkpoints of a run, which an interrupted one resumes at."""
    force: bool
    """Train all runs anew; what lies in their folders is moved to `aside/`, not deleted."""
    device: str
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    architecture: dict[str, Any]
    """How activations become pre-activations and reconstructions, with any sparsity penalty."""
    allocator: dict[str, Any]
    """Which latents may be active, under a budget."""
    aux_loss: dict[str, Any]
    """A second loss that keeps latents alive."""
    resampling: dict[str, Any]
    """New weights for latents that died."""
    fine_tune: dict[str, Any]
    """A last phase with another loss."""
    target_model: dict[str, Any]
    """Where activations come from."""
    data: dict[str, Any]
    """The tokens that the target model reads."""
    tracking: dict[str, Any]
    """Where the numbers are mirrored."""
    stream: dict[str, Any]
    """`StreamOptions`."""
    training: dict[str, Any]
    """`TrainingOptions`."""
    evaluation: dict[str, Any]
    """`EvaluationOptions`."""


def total_tokens(config: Mapping[str, Any]) -> int:
    """Count the tokens that a run trains on, its last phase included, in whole batches."""
    batch = config["stream"]["batch_tokens"]
    phases = (config["training"]["tokens"], config["fine_tune"].get("tokens", 0))
    return sum(tokens - tokens % batch for tokens in phases)
