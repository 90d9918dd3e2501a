"""Who is compared in `quality`, and what one of its trainings is."""

from dataclasses import asdict, dataclass
from typing import Any

OURS = "ours"
METHODS = {
    "token": "topk",
    "mutual": "mutual_choice",
    "feature": "feature_choice",
    "relu": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
}
"""our options `method=`"""
KS = 8, 32, 64
SWEPT_K = 32
"""where learning rates are compared"""
SEEDS = 0, 1, 2
WANTED = {"token": 0.97, "mutual": 0.97, "gated": 0.97, "jumprelu": 0.97, "relu": 1.0}
"""what our FVU may be, as a share of the best peer's; no peer has feature choice"""
DEAD = 0.005
"""dead latents that are few enough whatever a peer's"""


@dataclass(frozen=True)
class Case:
    """One training: all that its figures depend on."""

    set: str
    contender: str
    method: str
    seed: int
    dial: float
    """what rules L0: `k`, a target L0, or the weight of a penalty"""
    lr: float | None
    """None: the default"""
    words: tuple[str, ...] = ()
    """further options of ours"""

    @property
    def key(self) -> str:
        """The case in one line, under which its row is kept."""
        lr = "default" if self.lr is None else f"{self.lr:.4g}"
        head = f"{self.set}/{self.contender}/{self.method}"
        return " ".join([head, f"dial={self.dial:.4g}", f"lr={lr}", f"s{self.seed}", *self.words])

    def as_json(self) -> dict[str, Any]:
        """Give it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Contender:
    """A trainer of one method."""

    name: str
    method: str
    lr: float
    """where the sweep of learning rates starts"""
    dial: str = "k"
    """`fixed`: L0 is what is asked for; `k`: about so; `coefficient`: a penalty's weight"""
    first: float = 1.0
    """the coefficient that is tried first for an L0 of 32"""
    whole: bool = False
    """whether dials are whole numbers"""

    def start(self, k: float) -> float:
        """The dial that is tried first."""
        return self.first * SWEPT_K / k if self.dial == "coefficient" else k

    @property
    def power(self) -> float:
        """How L0 goes with the dial, about: L0 ~ dial^power."""
        return -1.0 if self.dial == "coefficient" else 1.0


PEERS = (
    Contender("saelens", "token", 8e-3, "fixed"),
    Contender("dictionary_learning", "token", 8e-3, "fixed"),
    Contender("sparsify", "token", 1e-2, "fixed"),
    Contender("sparsify_adam", "token", 8e-3, "fixed"),
    Contender("saelens", "mutual", 8e-3),
    Contender("dictionary_learning", "mutual", 8e-3, whole=True),
    Contender("saelens", "jumprelu", 4e-3, "coefficient", 1.0),
    Contender("dictionary_learning", "jumprelu", 4e-3),
    Contender("saelens", "gated", 4e-3, "coefficient", 5.0),
    Contender("dictionary_learning", "gated", 4e-3, "coefficient", 0.05),
    Contender("saelens", "relu", 4e-3, "coefficient", 5.0),
    Contender("dictionary_learning", "relu", 4e-3, "coefficient", 0.05),
    Contender("dictionary_learning_april", "relu", 4e-3, "coefficient", 0.05),
)


def ours() -> list[Contender]:
    """Ours, method by method."""
    return [
        Contender(OURS, method, 3e-3, "fixed" if method == "token" else "k") for method in METHODS
    ]
