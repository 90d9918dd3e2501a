"""A sweep of 12 runs with the model's forward pass, from a frozen pack as jobs have it.

Allocators × `k`, on a model of GPT-2 small's dimensions with random weights, the embedded tokens
and no tracking.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GPT2Config

from sae_sweeps.config.options import RunConfig
from sae_sweeps.launching.packs import freeze, thaw
from sae_sweeps.launching.progress import Quiet
from sae_sweeps.launching.work import Work
from sae_sweeps.record.manifest import Pack as PackOfManifest
from sae_sweeps.record.plan import Plan, Point, make_plan
from sae_sweeps.record.result import Result
from sae_sweeps.stream.ahead import Inline
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.tracking.off import Off
from tests.benchmarks.harvest import saved_model
from tests.gpu.sizes import ALLOCATED, CONTEXT, LAYER, NAMES, Size
from tests.support.small import small_run

from .ours import main, words
from .place import Place

BUDGETS, TOY_BUDGETS = (16, 32, 64, 128), (2, 3, 4, 5)
CHUNKS, BATCHES = 6, 10
"""Of which the first warms up; and batches of each."""
TOY = GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=CONTEXT)


class Watch(Quiet):
    """Takes the time from when a first run begins its second chunk until the last has no more.

    What runs do after their last batch, evaluation and files, is left out. On an accelerator they
    take turns, so that nothing else happens meanwhile.
    """

    def __init__(self, runs: int, config: RunConfig) -> None:
        super().__init__(runs, runs * config.total_tokens)
        self.chunk_tokens = config.stream.chunk_tokens
        self.began = self.ended = 0.0
        self._tokens = Counter[int]()
        self._trained = dict[int, float]()
        self._finishing = dict[float, float]()

    def advance(self, run: int, tokens: int) -> None:
        super().advance(run, tokens)
        self._tokens[run] += tokens
        if not self.began and self._tokens[run] > self.chunk_tokens:
            self.began = time.perf_counter()

    def metrics(self, run: int, figures: dict[str, float]) -> None:
        """The figures were waited for: what was queued until then is done."""
        super().metrics(run, figures)
        self._trained[run] = self.ended = time.perf_counter()

    def finished(self, run: int, status: str) -> None:
        super().finished(run, status)
        began = self._trained[run]
        self._finishing[began] = time.perf_counter() - began

    @property
    def finishing_s(self) -> float:
        """Of all runs."""
        return sum(self._finishing.values())

    @property
    def training_s(self) -> float:
        """Of all runs, from their second chunk on."""
        meanwhile = (s for began, s in self._finishing.items() if began < self.ended)
        return self.ended - self.began - sum(meanwhile)


def measure(here: Place) -> None:
    """The sweep as a whole, then the model's forward pass alone."""
    with tempfile.TemporaryDirectory() as home, here.cell(what="12 runs"):
        model = saved_model(Path(home), TOY if here.rehearsal else None)
        plan = planned(here, Path(home), model)
        swept(here, plan)


def planned(here: Place, home: Path, model: Path) -> Plan:
    """Each allocator with each budget."""
    size = here.sizes[NAMES[0]]
    budgets = TOY_BUDGETS if here.rehearsal else BUDGETS
    every = [[f"method={method}", f"k={k}"] for method in ALLOCATED for k in budgets]
    options = [*common(here, size), f"target_model.model={model}", *words(here)]
    runs = [small_run(home, *options, *some) for some in every]
    points = [Point(run.overrides, run.config, run.choices) for run in runs]
    return make_plan("gpu", home / "sweep", points)


def common(here: Place, size: Size) -> list[str]:
    """What all runs of the sweep share."""
    chunk, layer = BATCHES * size.batch, 0 if here.rehearsal else LAYER
    return [
        *("target_model=transformer_lens", "data=embedded", f"data.context_tokens={CONTEXT}"),
        *(f"target_model.hook=blocks.{layer}.hook_resid_post", f"d_sae={size.d_sae}"),
        *("target_model.dtype=bfloat16", f"stream.batch_tokens={size.batch}"),
        *(f"stream.chunk_tokens={chunk}", f"stream.calibration_tokens={size.batch}"),
        *(f"training.tokens={CHUNKS * chunk}", f"training.log_every_tokens={chunk}"),
        *("stream.repeat=true", f"evaluation.tokens={size.batch}", "evaluation.ce_tokens=0"),
    ]


def swept(here: Place, plan: Plan) -> None:
    """Freeze, thaw, train, and tell of it."""
    [runs] = plan.packs
    [path] = freeze(plan, [PackOfManifest("1-0", [run.name for run in runs], None)])
    work, began = Work(thaw(path).runs), time.perf_counter()
    watch = Watch(len(runs), runs[0].config)
    work.load(watch)
    loaded = time.perf_counter()
    harvest = work.pack.harvest if work.pack else None
    outcomes = list(work.do(Off()).values())
    for outcome in outcomes:
        if not isinstance(outcome, Result):
            raise outcome
    batches = BATCHES * (CHUNKS - 1)
    seconds = {"load_s": loaded - began, "do_s": time.perf_counter() - loaded}
    ms = 1e3 * watch.training_s / batches
    here.tell(what="12 runs", runs=len(outcomes), ms=ms, finishing_s=watch.finishing_s, **seconds)
    assert harvest is not None
    alone = forward_ms(here, harvest, runs)
    here.tell(what="forward pass", ms=alone, share=alone / ms)


def forward_ms(here: Place, harvest: Harvest, runs: Sequence[Any]) -> float:
    """The stream's chunks alone, per batch of tokens."""
    stream = harvest.stream(runs[0].config)

    def chunk() -> None:
        chunks = harvest.begin(0, [stream], Inline())
        chunks.wait()
        chunks.take(stream)

    return here.milliseconds(chunk) / BATCHES


if __name__ == "__main__":
    main(measure)
