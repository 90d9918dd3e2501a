"""The config's sections without alternatives; their fields are the schema that YAML answers to."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from sae_sweeps.marks import AtMost, Birth, Idle


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The order and size of activation batches; shared by every run of a pack."""

    batch_tokens: Annotated[
        int,
        Ge(2),
        Le(2**26),
        AtMost(".chunk_tokens", "training.tokens", "evaluation.tokens", "fine_tune.tokens"),
    ]
    """Tokens per training batch."""
    chunk_tokens: Annotated[int, Ge(1), Le(2**26)]
    """Tokens shuffled together in memory before batches are cut from them."""
    seed: Annotated[int, Ge(0), Lt(2**63)]
    """Rules the order of the data; the run's own `seed` rules everything else."""
    repeat: bool
    """Start over when the data end before `training.tokens`; off, that is an error."""
    calibration_tokens: Annotated[int, Ge(1), Le(2**26)]
    """Tokens seen before training that set the activations' scale and centre."""
    centre: bool
    """Take the mean off the activations before they are scaled."""
    special_tokens: Annotated[bool, Birth(True)]
    """Train and measure on BOS, EOS and separators within rows, too."""
    skip_first: Annotated[int, Ge(0), Birth(0)]
    """Tokens at the beginning of a row, behind its BOS, that are left out."""
    max_norm: Annotated[float | None, Gt(1), Birth(None)]
    """Leave out tokens whose norm is more than this many times the median; null: none."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long one SAE is trained, and what every optimiser is given; lengths are in tokens."""

    tokens: Annotated[int, Ge(1)]
    """Tokens the SAE is trained on."""
    gradient_clip_norm: Annotated[float, Gt(0)]
    """Largest norm of the whole gradient, per step; longer ones are scaled down."""
    dead_window_tokens: Annotated[int, Ge(1), AtMost(".tokens")]
    """A latent that has not fired for this many tokens counts as dead."""
    log_every_tokens: Annotated[int, Ge(1)]
    """Tokens between two rows of `metrics.jsonl`."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Of large products in training; `auto` is bfloat16 on CUDA devices that have it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How a finished SAE is measured, on held-out tokens."""

    tokens: Annotated[int, Ge(1), AtMost("target_model.held_out_tokens", "data.held_out_tokens")]
    """Held-out tokens for L0, FVU and densities."""
    ce_tokens: Annotated[int, Ge(0), AtMost(".tokens")]
    """Held-out tokens for the cross-entropy with the SAE spliced into the model."""


@dataclass(frozen=True, kw_only=True)
class RootOptions:
    """Everything a run's config states beside its groups (see `groups`)."""

    name: Annotated[str | None, Idle()]
    """The sweep's name and folder; null derives one from the config."""
    seed: Annotated[int, Ge(0), Lt(2**63)]
    """Rules a run's initialisation and rounding."""
    k: Annotated[float, Idle(), Gt(0), AtMost("d_sae")]
    """Mean number of active latents per token; it acts only through the options it sets."""
    d_sae: Annotated[int, Ge(1), Le(2**26)]
    """Number of latents."""
    threads: Annotated[int, Idle(), Ge(1), Le(1024)]
    """CPU threads of one run; the runs of a pack train side by side on the cores there are."""
    engine: Annotated[Literal["auto", "sparse", "dense"], Idle()]
    """How products with activations are computed; `auto` goes by density, width and device."""
    deterministic: Annotated[bool, Idle(), Birth(False)]
    """On accelerators have PyTorch add in the same order each time, and refuse what cannot."""
    checkpoint_minutes: Annotated[float, Idle(), Ge(0)]
    """Minutes of training between two checkpoints of a run, which an interrupted one resumes at."""
    force: Annotated[bool, Idle()]
    """Train all runs anew; what lies in their folders is moved to `aside/`, not deleted."""
    measure_anew: Annotated[bool, Idle(), Birth(False)]
    """Measure finished runs anew from their weights, for figures that came later."""
    device: Annotated[str, Idle()]
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    stream: StreamOptions
    training: TrainingOptions
    evaluation: Annotated[EvaluationOptions, Idle()]


ROOT = f"{__name__}.{RootOptions.__name__}"
KINDS: dict[str, type[Any]] = {
    key: kind
    for key, kind in get_type_hints(RootOptions).items()
    if is_dataclass(kind) and isinstance(kind, type)
}
SECTIONS = {name: f"{__name__}.{kind.__name__}" for name, kind in KINDS.items()}
"""What has no alternatives, and the class of its options."""
OWN = tuple(option.name for option in fields(RootOptions))


def _types(hint: Any) -> tuple[type, ...]:
    """Give the types that JSON may have for a hint; an int will do for a float."""
    if get_origin(hint) is Literal:
        return tuple({type(choice) for choice in get_args(hint)})
    if get_args(hint):
        return tuple(kind for part in get_args(hint) for kind in _types(part))
    return (int, float) if hint is float else (hint,)


TYPES = {
    kind: {key: _types(hint) for key, hint in get_type_hints(kind).items() if key not in KINDS}
    for kind in (RootOptions, *KINDS.values())
}


def _require_types(kind: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse, by ValueError, what readers would stumble over; limits are `check`'s affair."""
    for key, types in TYPES[kind].items():
        if not isinstance(options[key], types):
            names = " or ".join(known.__name__ for known in types)
            raise ValueError(f"its config's {key} is {options[key]!r}, expected {names}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(RootOptions):
    """One run's config, resolved and checked."""

    nodes: dict[str, dict[str, Any]]
    """By group its class, as `_target_`, and the options of it; groups that a user brought too."""

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "RunConfig":
        """Read a config of today's, as `check.checked` gives it or `history.upgrade` does.

        Raises:
            ValueError: an option is missing, of another type, or not one of this version.
        """
        nodes = {key: node for key, node in tree.items() if key not in OWN}
        try:
            _require_types(RootOptions, tree)
            for key, kind in KINDS.items():
                _require_types(kind, tree[key])
            sections: dict[str, Any] = {key: kind(**tree[key]) for key, kind in KINDS.items()}
            return cls(nodes=nodes, **{key: tree[key] for key in OWN} | sections)
        except KeyError as error:
            raise ValueError(f"its config lacks {error}") from None
        except TypeError as error:
            raise ValueError(f"its config is not of this version: {error}") from None

    @property
    def tree(self) -> dict[str, Any]:
        """All of it as plain data, which is what is written and hashed."""
        own = {key: getattr(self, key) for key in OWN}
        return own | {key: dict(vars(own[key])) for key in KINDS} | self.nodes

    @property
    def total_tokens(self) -> int:
        """How many tokens are trained on, the last phase included, in whole batches."""
        batch = self.stream.batch_tokens
        phases = (self.training.tokens, self.nodes["fine_tune"].get("tokens", 0))
        return sum(tokens - tokens % batch for tokens in phases)
