"""What a GPU is asked, in this order: what decides comes first. Limits, and goals of figures.

Without kernels of our own, of which there are none yet. This is read without torch or any package:
the machine may lack them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from .figures import Figures, Goal, Grid, ratio
from .sizes import ALLOCATED, MOST_MS, NAMES, PENALISED, SIZES

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

    def command(self, rehearsal: bool) -> list[str]:
        """What its process is started with."""
        words = ["--rehearse"] if rehearsal else []
        return [sys.executable, "-m", f"tests.gpu.parts.{self.name}", *words]


PEERS = {"sae_lens": 5.0, "dictionary_learning": 2.5, "sparsify": 2.0}
"""How many times as fast as their own training step ours is to be, in bfloat16 all."""
AS_CONFIGURED = "as configured"
"""Says of a step that nothing of it is left out, and no latent is dead."""


OFF_MEMORY = "peak of memory beside the plan's, % off at most"
OFF_TIME = "time of a step beside the plan's, % off at most"


def figure(part: str, name: str, **where: object) -> Callable[[Figures], float | None]:
    """What finds a figure."""
    return lambda found: found.one(part, name, **where)


def step_ms(found: Figures, size: str, aux: str = AS_CONFIGURED) -> float | None:
    """A token step of ours."""
    return found.one("steps", "ms", size=size, method="topk", aux=aux)


def rates() -> tuple[Goal, ...]:
    """Of the machine itself."""

    def rate(size: str) -> Goal:
        found = figure("rates", "tflop_per_s", what="bfloat16", size=size)
        return Goal(f"bfloat16 product, TFLOP/s, {size}", 600.0, found, at_least=True)

    def widened(size: str) -> Goal:
        def found(figures: Figures) -> float | None:
            wide = figures.one("rates", "ms", what="float32 output", size=size)
            return ratio(wide, figures.one("rates", "ms", what="bfloat16", size=size))

        return Goal(f"product with float32 output over bfloat16, {size}", 1.15, found)

    copy = Goal("copy, TB/s", 4.0, figure("rates", "tb_per_s", what="copy"), at_least=True)
    return (copy, *map(rate, NAMES), *map(widened, NAMES))


def steps() -> tuple[Goal, ...]:
    """Of `Trainer.step`."""

    def token(size: str, d_sae: int) -> Goal:
        return Goal(f"token step, {size}, ms", MOST_MS[d_sae], lambda found: step_ms(found, size))

    def idle_aux(size: str) -> Goal:
        def found(figures: Figures) -> float | None:
            return ratio(step_ms(figures, size), step_ms(figures, size, aux="none"))

        return Goal(f"aux_k with none dead over no aux loss, {size}", 1.02, found)

    def waits(kind: str, methods: tuple[str, ...], most: float) -> Goal:
        def found(figures: Figures) -> float | None:
            counts = [figures.most("steps", "waits", method=method) for method in methods]
            return max((count for count in counts if count is not None), default=None)

        return Goal(f"waits of a step with {kind}, at most", most, found)

    def off_plan(figure: str) -> Callable[[Figures], float | None]:
        return lambda found: found.most("steps", figure, aux=AS_CONFIGURED)

    return (
        *(token(name, size.d_sae) for name, size in zip(NAMES, SIZES, strict=True)),
        *map(idle_aux, NAMES),
        waits("an allocator", ALLOCATED, 0),
        waits("a penalty", PENALISED, 1),
        Goal(OFF_MEMORY, 10, off_plan("percent_off_plan")),
        Goal(OFF_TIME, 25, off_plan("percent_off_roofline")),
    )


def peers() -> tuple[Goal, ...]:
    """Of steps beside the peers' own."""

    def faster(peer: str, size: str) -> Goal:
        def found(figures: Figures) -> float | None:
            where = {"peer": peer, "method": "topk", "size": size, "autocast": True}
            return ratio(figures.one("peers", "ms", **where), step_ms(figures, size))

        text = f"{peer} TopK over our token step, autocast, {size}"
        return Goal(text, PEERS[peer], found, at_least=True)

    return tuple(faster(peer, size) for peer in PEERS for size in NAMES[:2])


def sweep() -> tuple[Goal, ...]:
    """Of 12 runs beside one of SAELens', the model's forward pass included in both."""

    def beside(how: str, tuned: bool, most: float) -> Goal:
        def found(figures: Figures) -> float | None:
            where = {"size": NAMES[0], "autocast": tuned}
            step = figures.one("peers", "ms", peer="sae_lens", method="topk", **where)
            forward = figures.one("peers", "ms", peer="transformer_lens", **where)
            one_run = step + forward if step is not None and forward is not None else None
            return ratio(figures.one("sweep", "ms", what="12 runs"), one_run)

        return Goal(f"12 runs over one of SAELens' {how}", most, found)

    return beside("tuned", True, 2.0), beside("at its defaults", False, 0.6)


def bits() -> tuple[Goal, ...]:
    """Of runs that should end in equal weights."""

    def differing(deterministic: bool) -> Goal:
        found = figure("bits", "differing", what="all", deterministic=deterministic)
        text = f"runs whose weights differ, deterministic={str(deterministic).lower()}"
        return Goal(text, 0, found)

    return differing(False), differing(True)


def quality() -> tuple[Goal, ...]:
    """Of what runs end in."""
    text = "FVU of 400 steps beside dense products in float32, % off at most"
    return (Goal(text, 0.5, lambda found: found.most("quality", "percent_off")),)


def capture() -> tuple[Goal, ...]:
    """Of what launches cost."""
    found = figure("capture", "replayed_over_eager")
    return (Goal("a captured token step of 2,048 latents over an eager one", 0.5, found),)


PARTS = (
    Part("machine", 40),
    Part("rates", 35, rates()),
    Part("operators", 50, grid=Grid("ms", "operator")),
    Part("steps", 95, steps(), grid=Grid("ms", "step", aside="host_ms")),
    Part("peers", 80, peers(), peers=True, grid=Grid("ms", "step", aside="host_ms")),
    Part("sweep", 65, sweep()),
    Part("bits", 40, bits()),
    Part("quality", 40, quality(), grid=Grid("fvu", "method", across="way")),
    Part("capture", 20, capture()),
)
