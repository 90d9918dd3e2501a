"""What the parts of a run agree on: the step's record and the groups' abstract classes.

A variant's options are the keyword-only parameters of its constructor. What they must keep to
among each other a static method `rules` may say; what it takes, for a plan made without torch,
others: `cost` of an architecture, `width`, `model_bytes`, `parameters` and `is_here` of a target
model, `cache_bytes` of data (see `config.source.own_static`).

Axis words: `batch` tokens in a batch, `d_in` width of the hooked activation, `d_sae` latents,
`n` listed activations, `rows`/`seq` token rows and their length.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt
from torch import Tensor, nn

from sae_sweeps.engine.acts import Selection, SparseActs
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.concerned import Concerned
from sae_sweeps.engine.listing import MAX_LISTED
from sae_sweeps.engine.pre_acts import PreActs
from sae_sweeps.measures import Measure


@dataclass(frozen=True)
class Step:
    """What one forward pass produced. Losses and metrics read it and change nothing."""

    x: Float[Tensor, "batch d_in"]
    """scaled activations"""
    pre_acts: PreActs
    """before rectifier, threshold and allocator"""
    selection: Selection
    selected: SparseActs
    """`pre_acts` at the selection"""
    acts: SparseActs
    recon: Float[Tensor, "batch d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    dead: Bool[Tensor, " d_sae"]
    """silent for the last `training.dead_window_tokens` tokens"""
    budgeted: bool
    """an allocator set the number of active latents"""
    concerned: Concerned | None = None
    """what the auxiliary loss told before the forward pass"""


@dataclass(frozen=True)
class Progress:
    """How far training is after a step."""

    tokens: int
    """tokens trained on, this batch included"""
    tokens_total: int
    lr: float
    """learning rate of the step"""


@dataclass(frozen=True)
class Inference:
    """How an allocator decides without a batch: top-k, a threshold per latent, or (neither) not."""

    k: int | None
    threshold: Float[Tensor, " d_sae"] | None
    """a latent is active where its affinity is strictly above; +inf for one that never fired"""


@dataclass(frozen=True)
class SAELensWeights:
    """A trained SAE in SAELens' terms: architecture, tensors, further `cfg.json` keys."""

    architecture: str
    tensors: dict[str, Tensor]
    cfg: dict[str, int | bool]


class Allocator(nn.Module, ABC):
    """Chooses which token-latent pairs are active.

    In training mode it ranks the whole batch; in evaluation mode each token is decided on its own.
    All running state is in its `state_dict`.
    """

    sets_budget: ClassVar[bool]
    """whether it fixes the number of active latents; then sparsity penalties are off by default"""
    ranks: ClassVar[bool] = True
    """whether it reads affinities"""

    @abstractmethod
    def forward(self, affinities: Affinities) -> Selection:
        """Select pairs; the selection carries no gradient."""

    @abstractmethod
    def observe(self, step: Step, progress: Progress) -> None:
        """Update running state after a training step."""

    @abstractmethod
    def inference(self) -> Inference | None:
        """The batch-free rule that evaluation mode applies; None where it is of another kind."""

    @abstractmethod
    def rescale(self, factor: float) -> None:
        """Adapt thresholds to inputs multiplied by `factor`."""


class Architecture(nn.Module, ABC):
    """An SAE: encoder, allocator, decoder, and the penalty that keeps it sparse."""

    W_enc: nn.Parameter
    """[d_in, d_sae]"""
    W_dec: nn.Parameter
    """[d_sae, d_in]"""
    b_dec: nn.Parameter
    """[d_in]; subtracted from the input, added to the reconstruction"""
    allocator: Allocator
    unit_norm: bool = True
    """whether training keeps the decoder's rows at unit norm"""
    max_listed: float = MAX_LISTED
    """share of token-latent pairs up to which products are made pair by pair"""

    @abstractmethod
    def initialise(self, generator: torch.Generator, mean: Float[Tensor, " d_in"]) -> None:
        """Draw the weights; `mean` of the scaled activations is the first `b_dec`."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch d_in"], dead: Bool[Tensor, " d_sae"]) -> Step:
        """Encode, allocate, decode."""

    @abstractmethod
    def penalty(self, step: Step) -> Float[Tensor, ""]:
        """What is added to the reconstruction loss, auxiliary losses aside."""

    @abstractmethod
    def observe(self, step: Step, progress: Progress) -> None:
        """Update running state after a step: the allocator's, the coefficient's."""

    def lr_factors(self) -> dict[str, float]:
        """Parameters whose learning rate is a multiple of the common one."""
        return {}

    @abstractmethod
    def diagnostics(self) -> dict[str, float]:
        """Scalars worth logging beside the common ones, by their tracker key."""

    @abstractmethod
    def rescale(self, factor: float) -> None:
        """Change biases and thresholds in place to suit inputs multiplied by `factor`."""

    @abstractmethod
    def saelens(self) -> SAELensWeights | None:
        """The weights in SAELens' layout; None where SAELens has no such inference rule."""


class Optimizer(ABC):
    """Makes steps on some parameters.

    The constructor's positional parameters are the parameters and, for each, how many times the
    common learning rate it is to have; `lr` is an option of every variant.
    """

    lr: float
    """peak learning rate"""
    trained: list[nn.Parameter]

    @abstractmethod
    def zero_grad(self) -> None:
        """Let go of all gradients."""

    def clip(self, longest: float) -> Float[Tensor, ""]:
        """Shorten the gradient of all parameters to `longest`; how long it was."""
        return nn.utils.clip_grad_norm_(self.trained, longest)

    @abstractmethod
    def update(self, lr: float) -> None:
        """Make a step at the common learning rate `lr`; a parameter without gradient stays."""

    @abstractmethod
    def forget(self, parameter: nn.Parameter, dim: int, latents: Int[Tensor, " n"]) -> None:
        """Set what is remembered of these latents' part of a parameter, along `dim`, to 0."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All of its state, by names that stay the same."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over the state that `tensors` gave, in an optimiser that has made no step."""


class Schedule(ABC):
    """How the learning rate moves; the constructor is given the tokens of the whole training."""

    @abstractmethod
    def factor(self, tokens: int, batch: int) -> float:
        """Share of the peak learning rate for a batch of `batch` tokens after `tokens`."""


class AuxLoss(nn.Module, ABC):
    """A loss beside reconstruction and penalty."""

    def concerned(self, dead: Bool[Tensor, " d_sae"], budgeted: bool) -> Concerned | None:
        """The latents that the loss of the next step concerns, if it does not concern all.

        Asked before the forward pass, so that nobody waits for their number after it; the step
        has the answer. `dead` and `budgeted` are as in `Step`.
        """

    @abstractmethod
    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss, coefficient included."""

    def observe(self, step: Step, progress: Progress) -> None:
        """Update running state, which is in buffers, after a training step."""


class Resampling(nn.Module, ABC):
    """Gives latents that died new weights. All running state is in buffers."""

    @abstractmethod
    def forward(
        self, sae: Architecture, step: Step, progress: Progress
    ) -> Int[Tensor, " n"] | None:
        """Look at a finished training step; draw new weights for latents and tell which, if any.

        The trainer then forgets what its optimiser knows of them and counts them as alive."""

    @abstractmethod
    def lr_factor(self, tokens: int) -> float:
        """Share of the learning rate to use for the batch after `tokens`."""


Divergence = Callable[[Float[Tensor, "batch d_in"]], Float[Tensor, ""]]
"""Mean over tokens of KL(clean || spliced), in nats, of a batch's reconstruction."""


class FineTune(nn.Module, ABC):
    """A last phase, on tokens beyond `training.tokens`: what is trained then, and on which loss."""

    tokens: int
    """length of the phase"""
    lr: float
    """learning rate that falls linearly to 0"""
    whole_contexts: ClassVar[bool]
    """whether batches are whole contexts, tokens in order, whose divergence can be asked for"""

    @abstractmethod
    def begin(self, sae: Architecture) -> list[nn.Parameter]:
        """Prepare for `sae`, before its training; the parameters that the phase trains.

        Raises:
            ConfigError: it cannot end this SAE's training.
        """

    @abstractmethod
    def forward(
        self,
        sae: Architecture,
        x: Float[Tensor, "batch d_in"],
        dead: Bool[Tensor, " d_sae"],
        divergence: Divergence | None,
    ) -> tuple[Step, Float[Tensor, ""]]:
        """The step, whose `recon` is what the phase makes of it, and the loss."""

    def observe(self, sae: Architecture, step: Step, progress: Progress) -> None:
        """Update running state after a step."""

    def fold(self, sae: Architecture) -> None:
        """Write what was learnt beside the SAE's own parameters into them."""


Split = Literal["train", "held_out"]


class Rows:
    """Token rows, as small integers in memory or on disk; those asked for become a tensor.

    `sha256` tells rows of files that may change from what they were.
    """

    def __init__(self, ids: UInt[np.ndarray, "rows seq"], sha256: str | None = None) -> None:
        self.ids, self.sha256 = ids, sha256

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, seq)"""
        return self.ids.shape[0], self.ids.shape[1]

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Int[Tensor, "n seq"]:
        return torch.from_numpy(self.ids[rows.numpy()].astype(np.int64))


class Data(ABC):
    """Token rows of a data set, split by document into training and held-out rows."""

    @abstractmethod
    def rows(self, split: Split, tokenizer: Any) -> Rows:
        """All rows of a split in the ids of a Hugging Face tokenizer, BOS first in each."""


Splice = Callable[[Float[Tensor, "rows seq d_in"]], Float[Tensor, "rows seq d_in"]]


@dataclass(frozen=True)
class SplicedLosses:
    """What a splice does to the model's predictions, in nats per predicted token."""

    ce: Float[Tensor, "*predictions"]
    """cross-entropy of the token that follows"""
    kl: Float[Tensor, "*predictions"]
    """KL(clean || spliced) of the distributions over that token"""


class TargetModel(ABC):
    """Where activations come from: rows of training and held-out activations by index."""

    d_in: int
    tokens_per_row: int
    rows_at_once: int | None = None
    """rows that one call should ask for, where several threads may call; None: any number"""
    has_loss: bool
    """whether `spliced_losses` can be asked for"""
    dictionary: Float[Tensor, "features d_in"] | None = None
    """the true features' unit directions, where they are known"""
    true_l0: float | None = None
    """mean number of true features per token, where it is known"""
    hook: str = ""
    """where in a model the activations are; empty without a model"""
    device: torch.device
    description: dict[str, str | int | bool | None]
    """what SAELens metadata and reports say of it: model_name, hook_name, context_size, …"""

    @abstractmethod
    def row_count(self, split: Split) -> int:
        """Rows of `train` or `held_out`."""

    @abstractmethod
    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        """Unscaled activations of the given rows in order, BOS positions dropped.

        A row's are the same in whatever company it is asked for, `rows_at_once` by `rows_at_once`.
        """

    def special(
        self, split: Split, rows: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows tokens_per_row"]:
        """True for tokens of the given rows that are no text: BOS, EOS, separators, padding.

        On the CPU, without a forward pass; none are where the tokens are not known.
        """
        del split
        return torch.zeros(len(rows), self.tokens_per_row, dtype=torch.bool)

    def beside(self, hook: str) -> "TargetModel | None":
        """The same model at another value of the option `hook`; None where one pass cannot do.

        Asked only of variants that have this option. Where it gives None, the other hook has a
        target model of its own.
        """
        del hook
        return None

    def activations_at(
        self, hooks: Sequence[str], split: Split, rows: Int[Tensor, " rows"]
    ) -> list[Float[Tensor, "tokens d_in"]]:
        """`activations` at several hooks, own or of what `beside` gave, from one pass.

        Raises:
            NotImplementedError: a variant whose `beside` gives nothing is never asked.
        """
        raise NotImplementedError

    @abstractmethod
    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        """Losses with the hooked activation replaced; differentiable through `splice`.

        Both are [rows, targets]: of the predictions made at a row's tokens, in order, the last
        one's left out where nothing follows it.
        `splice` maps hooked activations of consecutive rows, unscaled and the BOS position left
        out, to what replaces them. It is called for a few rows at a time, in order."""


class Measurement(ABC):
    """Figures of a finished SAE beside those that every run has."""

    measures: ClassVar[tuple[Measure, ...]]
    """what each figure is called and where it is shown; no name is one of ours"""

    @abstractmethod
    def figures(
        self, sae: Architecture, acts: Float[Tensor, "tokens d_in"], target: TargetModel
    ) -> Mapping[str, float]:
        """Measure `sae`, without gradients, and change nothing; some figures or all, by name.

        Args:
            sae: in evaluation mode; it takes and gives activations as the target model has them.
            acts: the held-out tokens of `evaluation.tokens`, unscaled and shuffled.
        """
