"""What a GPU is asked, in this order: what decides comes first. Limits, and goals of figures.

The list of shared/GPU.md, section 6, without kernels of our own, of which there are none yet. This
is read without torch or any package: the machine may lack them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .figures import Figures, Goal, Grid, ratio
from .sizes import MOST_MS, NAMES, SIZES

TOTAL_S = 480.0
"""For everything; a part that would begin later is left out."""
KERNELS = "kernels: none yet; their check, their rates and steps with them wait until there are."


@dataclass(frozen=True)
class Part:
    """A process that measures something, and prints figures as it gets them."""

    name: str
    """Of its module in `tests.gpu.parts`."""
    limit_s: float
    goals: tuple[Goal, ...] = ()
    peers: bool = False
    """Whether it runs with the peers' packages, not with ours."""
    grid: Grid | None = None

    @property
    def module(self) -> str:
        """What Python is to run."""
        return f"tests.gpu.parts.{self.name}"


ALLOCATED = ("topk", "mutual_choice", "feature_choice")
PENALISED = ("relu", "jumprelu", "gated")
PEERS = {"sae_lens": 5.0, "dictionary_learning": 2.5, "sparsify": 2.0}
"""How many times as fast as their own training step ours is to be, in bfloat16 all."""
AS_CONFIGURED = "as configured"
"""Says of a step that nothing of it is left out, and no latent is dead."""


def figure(part: str, name: str, **where: object) -> Callable[[Figures], float | None]:
    """What finds a figure."""
    return lambda found: found.one(part, name, **where)


def step_ms(found: Figures, size: str, method: str = "topk", aux: str = AS_CONFIGURED):
    """A step of ours."""
    return found.one("steps", "ms", size=size, method=method, aux=aux)


def rates() -> tuple[Goal, ...]:
    """Of the machine itself."""
    products = [("bfloat16", "bfloat16 product, TFLOP/s", 600.0)]
    goals = [Goal("copy, TB/s", 4.0, figure("rates", "tb_per_s", what="copy"), at_least=True)]
    for what, text, least in products:
        for size in NAMES:
            found = figure("rates", "tflop_per_s", what=what, size=size)
            goals.append(Goal(f"{text}, {size}", least, found, at_least=True))
    goals += [
        Goal(
            f"product with float32 output over bfloat16, {size}",
            1.15,
            lambda found, size=size: ratio(
                found.one("rates", "ms", what="float32 output", size=size),
                found.one("rates", "ms", what="bfloat16", size=size),
            ),
        )
        for size in NAMES
    ]
    return tuple(goals)


def steps() -> tuple[Goal, ...]:
    """Of `Trainer.step`."""

    def waits(methods: tuple[str, ...]) -> Callable[[Figures], float | None]:
        return lambda found: max(
            (
                count
                for method in methods
                if (count := found.most("steps", "waits", method=method)) is not None
            ),
            default=None,
        )

    return (
        *(
            Goal(
                f"token step, {size}, ms",
                MOST_MS[of.d_sae],
                lambda found, size=size: step_ms(found, size),
            )
            for size, of in zip(NAMES, SIZES, strict=True)
        ),
        *(
            Goal(
                f"aux_k with none dead over no aux loss, {size}",
                1.02,
                lambda found, size=size: ratio(
                    step_ms(found, size), step_ms(found, size, aux="none")
                ),
            )
            for size in NAMES
        ),
        Goal("waits of a step with an allocator, at most", 0, waits(ALLOCATED)),
        Goal("waits of a step with a penalty, at most", 1, waits(PENALISED)),
        Goal(
            "peak of memory beside the plan's, % off at most",
            10,
            lambda found: found.most("steps", "percent_off_plan"),
        ),
    )


def peers() -> tuple[Goal, ...]:
    """Of steps beside the peers' own."""
    return tuple(
        Goal(
            f"{peer} TopK over our token step, autocast, {size}",
            least,
            lambda found, peer=peer, size=size: ratio(
                found.one("peers", "ms", peer=peer, method="topk", size=size, autocast=True),
                step_ms(found, size),
            ),
            at_least=True,
        )
        for peer, least in PEERS.items()
        for size in NAMES[:2]
    )


def sweep() -> tuple[Goal, ...]:
    """Of 12 runs beside one of SAELens', the model's forward pass included in both."""

    def one_run(found: Figures, tuned: bool) -> float | None:
        where = {"size": NAMES[0], "autocast": tuned}
        step = found.one("peers", "ms", peer="sae_lens", method="topk", **where)
        forward = found.one("peers", "ms", peer="transformer_lens", method="forward", **where)
        return step + forward if step is not None and forward is not None else None

    return tuple(
        Goal(
            f"12 runs over one of SAELens' {how}",
            most,
            lambda found, tuned=tuned: ratio(
                found.one("sweep", "ms", what="12 runs"), one_run(found, tuned)
            ),
        )
        for how, tuned, most in (("tuned", True, 2.0), ("at its defaults", False, 0.6))
    )


def bits() -> tuple[Goal, ...]:
    """Of runs that should end in equal weights."""
    return tuple(
        Goal(
            f"runs whose weights differ, deterministic={str(deterministic).lower()}",
            0,
            lambda found, deterministic=deterministic: found.one(
                "bits", "differing", what="all", deterministic=deterministic
            ),
        )
        for deterministic in (False, True)
    )


PARTS = (
    Part("machine", 30),
    Part("rates", 35, rates()),
    Part("operators", 50, grid=Grid("ms", "operator")),
    Part("steps", 95, steps(), grid=Grid("ms", "step")),
    Part("peers", 80, peers(), peers=True, grid=Grid("ms", "step")),
    Part("sweep", 65, sweep()),
    Part("bits", 45, bits()),
    Part(
        "quality",
        40,
        (
            Goal(
                "FVU of 400 steps beside dense products in float32, % off at most",
                0.5,
                lambda found: found.most("quality", "percent_off"),
            ),
        ),
        grid=Grid("fvu", "method", "way"),
    ),
    Part(
        "capture",
        25,
        (
            Goal(
                "a captured token step of 2,048 latents over an eager one",
                0.5,
                figure("capture", "replayed_over_eager"),
            ),
        ),
    ),
)
