"""A user's own tracker, data, launcher, last phase and resampling, by the real command line.

As in `test_outside`: each is one Python file and one YAML file, with no edit to the project.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweeps.config.options import RunConfig
from sae_sweeps.record.identity import identity, stream_identity
from tests.support.outside import (
    TINY,
    command,
    lay_out,
    results,
    rows,
    sae_sweeps,
    stopped_at,
    weights,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("outside_others")]

LEDGER = '''
"""A page per run: its rows, and how it ended."""

import csv
import json

from sae_sweeps.tracking.interface import TrackedRun, Tracking


class Ledger(Tracking):
    """Pages in a folder of the sweep's, and a table of contents."""

    def __init__(self, *, folder: str) -> None:
        self.folder = folder

    def open(self, run):
        path = run.folder.parents[1] / self.folder / f"{run.name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{row.line}\\n" for row in run.files.rows()))
        return Page(path)

    def summarise(self, summary):
        path = summary.folder / self.folder / "contents.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows((row["run"], row["fvu"]) for row in summary.rows)

    def close(self, limit_s=None):
        pass


class Page(TrackedRun):
    """One run's."""

    def __init__(self, path):
        self.path = path

    def log(self, row):
        self.write(row.line)

    def finish(self, result):
        self.write(json.dumps({"failed": True} if result is None else result.metrics))

    def preempt(self):
        self.write(json.dumps({"left": True}))

    def write(self, line):
        with self.path.open("a") as file:
            file.write(f"{line}\\n")
'''

SUMS = '''
"""Additions, one a document; every tenth is held out."""

from itertools import chain, product
from typing import Annotated

import numpy as np
from annotated_types import Ge

from sae_sweeps.interfaces import Data, Rows


class Sums(Data):
    """a + b = c for all a and b up to the largest, in rows without padding."""

    def __init__(
        self, *, largest: Annotated[int, Ge(1)], context_tokens: Annotated[int, Ge(3)]
    ) -> None:
        self.largest, self.context_tokens = largest, context_tokens

    def documents(self, split):
        for number, (a, b) in enumerate(product(range(self.largest + 1), repeat=2)):
            if (number % 10 == 0) == (split == "held_out"):
                yield f"{a} + {b} = {a + b}\\n"

    def rows(self, split, tokenizer):
        encoded = tokenizer(list(self.documents(split)), add_special_tokens=False)["input_ids"]
        ids = np.fromiter(chain.from_iterable(encoded), np.uint16)
        width = self.context_tokens - 1
        text = ids[: len(ids) // width * width].reshape(-1, width)
        return Rows(np.pad(text, ((0, 0), (1, 0)), constant_values=tokenizer.bos_token_id))
'''

POLITE = '''
"""A process of low priority for each pack, one after the other."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from sae_sweeps.launching.launcher import PlanLauncher
from sae_sweeps.launching.packs import freeze
from sae_sweeps.launching.summary import results, tell_end, tell_plan
from sae_sweeps.launching.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Options:
    niceness: Annotated[int, Ge(0)]
    objective: str | list[str] | None


class Polite(PlanLauncher):
    schema = f"{__name__}.Options"

    def carry_out(self, plan):
        writer = Writer(plan, [*plan.packs, *plan.remeasured], self.node)
        ends = {}
        with writer.locked():
            if writer.packs:
                writer.begin()
            tell_plan(plan)
            for path in freeze(plan, writer.packs):
                ends[path.stem] = self.train(path)
        lost = {run: ends[pack.name] for pack in writer.packs for run in pack.runs}
        outcomes = results(plan, lost)
        tell_end(plan, outcomes)
        return outcomes

    def train(self, path):
        line = ["nice", "-n", str(self.given.niceness), sys.executable]
        line += ["-m", "sae_sweeps.launching.job", str(path)]
        return f"its process ended with {subprocess.run(line, capture_output=True).returncode}"
'''

BIAS = '''
"""A last phase for the pre-bias alone, on the squared error."""

from typing import Annotated

from annotated_types import Ge, Gt

from sae_sweeps.interfaces import FineTune


class Bias(FineTune):
    """The penalty, which pulled at it too, is left out."""

    whole_contexts = False

    def __init__(
        self, d_in: int, d_sae: int, *, tokens: Annotated[int, Ge(1)], lr: Annotated[float, Gt(0)]
    ) -> None:
        super().__init__()
        self.tokens, self.lr = tokens, lr

    def begin(self, sae):
        return [sae.b_dec]

    def forward(self, sae, x, dead, divergence):
        step = sae(x, dead)
        return step, (x - step.recon).pow(2).sum() / len(x)
'''

REDRAW = '''
"""Latents that have never fired by a certain moment are drawn anew, once."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt

from sae_sweeps.interfaces import Resampling


class Redraw(Resampling):
    """New directions are random, with decoder and encoder alike."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        at_tokens: Annotated[int, Gt(0)],
        seed: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__()
        self.at_tokens, self.seed = at_tokens, seed
        self.register_buffer("fired", torch.zeros(d_sae, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, sae, step, progress):
        before = progress.tokens - len(step.x)
        if before >= self.at_tokens:
            return None
        self.fired |= step.acts.tokens_per_latent > 0
        latents = (~self.fired).nonzero().squeeze(1)
        if progress.tokens < self.at_tokens or not len(latents):
            return None
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(len(latents), len(sae.b_dec), generator=generator)
        drawn = torch.nn.functional.normalize(drawn).to(sae.W_dec.device)
        sae.W_dec[latents], sae.W_enc[:, latents] = drawn, drawn.T
        return latents

    def lr_factor(self, tokens):
        return 1.0
'''

MODULES = {
    "my_ledger": LEDGER,
    "my_sums": SUMS,
    "hydra_plugins/my_polite": POLITE,  # the folder where Hydra looks for launchers
    "my_bias": BIAS,
    "my_redraw": REDRAW,
}

OPTION_FILES = {
    "tracking/ledger": "_target_: my_ledger.Ledger\nfolder: ledger\n",
    "data/sums": "_target_: my_sums.Sums\nlargest: 99\ncontext_tokens: 32\n",
    "data/small_sums": "_target_: my_sums.Sums\nlargest: 49\ncontext_tokens: 32\n",
    "hydra/launcher/polite": """
_target_: hydra_plugins.my_polite.Polite
niceness: 5
objective: null
""",
    "fine_tune/bias": "_target_: my_bias.Bias\ntokens: ${share:0.25}\nlr: 3e-3\n",
    "resampling/redraw": "_target_: my_redraw.Redraw\nat_tokens: ${share:0.5}\nseed: 7\n",
    "sweep/tiny": TINY,
    "sweep/made_up": """
# @package _global_
defaults:
  - tiny
  - override /target_model: synthetic
  - override /aux_loss: none
target_model: {d_in: 16, features: 64}
""",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder."""
    folder = tmp_path_factory.mktemp("outside")
    lay_out(folder, MODULES, OPTION_FILES)
    return folder


# --- Tracker -------------------------------------------------------------------------------

BAD_LUCK = """
some_or_stop = Member._train

def unlucky(self, batch):
    if self.run.config.k == 4 and self.trainer.tokens == 2048:
        raise RuntimeError("bad luck")
    some_or_stop(self, batch)

Member._train = unlucky
"""


def test_a_users_tracker_has_each_row_once_and_how_runs_ended(home: Path) -> None:
    """Of a run that failed, of one that was interrupted, and of both once they are retried."""
    words = ["+sweep=made_up", "name=told", "k=4,8", "tracking=ledger"]
    done = sae_sweeps(home, *words, before=stopped_at(4096) + BAD_LUCK)
    assert done.returncode == 143, done.stderr
    sweep = home / "outputs" / "told"
    failed, left = sorted((sweep / "ledger").glob("*.jsonl"), key=lambda path: "k8" in path.stem)
    for path, end, tokens in ((failed, {"failed": True}, 2048), (left, {"left": True}, 4096)):
        *told, last = lines(path)
        assert told == rows(sweep / "runs" / path.stem) and last == end
        assert tokens - 256 <= told[-1]["tokens"] <= tokens

    # From another folder: the tracker is built from what the sweep's folder says, if that is asked.
    done = command(home.parent, "retry", str(sweep), "--trust")
    assert done.returncode == 0, done.stderr
    assert "2 runs to train, 1 of them from a checkpoint" in done.stdout
    finished = results(home, "told")
    for path, result in finished:
        *told, last = lines(sweep / "ledger" / f"{path.name}.jsonl")
        assert told == rows(path) and told[-1]["tokens"] == 8192
        assert last == result["metrics"]
    with (sweep / "ledger" / "contents.csv").open(newline="") as file:
        contents = {name: float(fvu) for name, fvu in csv.reader(file)}
    assert contents == {path.name: result["metrics"]["fvu"] for path, result in finished}

    # It is no part of what a run is.
    assert "0 runs to train, 2 finished before" in sae_sweeps(home, *words[:3]).stdout


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Data ----------------------------------------------------------------------------------


def test_runs_train_on_a_users_data(home: Path) -> None:
    """Other options of it make other sweeps, of other runs, on other activations."""
    words = ["+sweep=tiny", "name=null", "training.tokens=4096"]
    found: list[tuple[Path, dict[str, Any]]] = []
    for data in ("sums", "small_sums"):
        done = sae_sweeps(home, *words, f"data={data}")
        assert done.returncode == 0, done.stderr
        folder = home / done.stdout.splitlines()[0].partition(":")[0]
        found += results(home, folder.name)
    (one, first), (other, second) = found
    assert one.parents[1] != other.parents[1] and one.name != other.name
    assert (first["choices"]["data"], second["choices"]["data"]) == ("sums", "small_sums")
    assert first["config"]["data"] == {
        "_target_": "my_sums.Sums",
        "largest": 99,
        "context_tokens": 32,
    }
    assert second["config"]["data"] == first["config"]["data"] | {"largest": 49}
    configs = [RunConfig.of(result["config"]) for result in (first, second)]
    for identify in (identity, stream_identity):
        assert len(set(map(identify, configs))) == 2
    assert not torch.equal(weights(one)["W_enc"], weights(other)["W_enc"])
    assert first["metrics"]["ce_clean"] != second["metrics"]["ce_clean"]
    cfg = json.loads((one / "sae" / "cfg.json").read_text())
    assert cfg["metadata"]["context_size"] == 32
    assert "0 runs to train, 1 finished before" in sae_sweeps(home, *words, "data=sums").stdout


def test_what_a_users_data_hold_is_told(home: Path) -> None:
    """As rows of 31 tokens beside BOS, without what does not fill one."""
    done = sae_sweeps(home, "+sweep=tiny", "name=few", "data=sums", "data.largest=29")
    assert done.returncode == 1
    text = f"evaluation.tokens is 1024: the data hold {21 * 31} held-out tokens."
    assert done.stderr.splitlines()[-1] == f"sae-sweeps: {text}"
    assert not (home / "outputs" / "few").exists()


# --- Launcher ------------------------------------------------------------------------------


def test_a_users_launcher_trains_a_sweep_and_retries_it(home: Path) -> None:
    words = ["+sweep=made_up", "name=polite", "k=4,8", "hydra/launcher=polite"]
    done = sae_sweeps(home, *words, "hydra.launcher.niceness=1")
    assert done.returncode == 0, done.stderr
    assert "polite: 2 of 2 runs are finished\n" in done.stdout
    sweep = home / "outputs" / "polite"
    assert "2 of 2 runs are finished" in (sweep / "packs" / "1-0.log").read_text()
    launcher = {"_target_": "hydra_plugins.my_polite.Polite", "niceness": 1, "objective": None}
    assert json.loads((sweep / "sweep.json").read_text())["launcher"] == launcher
    assert "0 runs to train, 2 finished before" in sae_sweeps(home, *words).stdout

    (lost, _), (kept, _) = results(home, "polite")
    before = {path: weights(path) for path in (lost, kept)}
    (lost / "result.json").unlink()
    done = command(home.parent, "retry", str(sweep))  # its module is not beside this command
    assert done.returncode == 1 and "no module 'hydra_plugins.my_polite'" in done.stderr
    done = command(home, "retry", str(sweep))
    assert done.returncode == 0, done.stderr
    assert "polite: 1 of 1 runs are finished\n" in done.stdout
    manifest = json.loads((sweep / "sweep.json").read_text())
    assert manifest["launcher"] == launcher and len(manifest["earlier"]) == 1
    assert manifest["packs"] == [{"name": "2-0", "runs": [lost.name], "job": None}]
    assert "1 of 1 runs are finished" in (sweep / "packs" / "2-0.log").read_text()
    for path, saved in before.items():
        assert all(torch.equal(value, saved[name]) for name, value in weights(path).items())


# --- A last phase --------------------------------------------------------------------------


def test_a_users_last_phase_trains_what_it_says(home: Path) -> None:
    words = ["+sweep=made_up", "method=relu"]
    done = sae_sweeps(home, *words, "name=tuned", "fine_tune=bias,none")
    assert done.returncode == 0, done.stderr
    (tuned, result), (plain, without) = sorted(
        results(home, "tuned"), key=lambda found: found[1]["choices"]["fine_tune"]
    )
    assert (result["label"], without["label"]) == ("relu + bias", "relu")
    assert (result["tokens"], without["tokens"]) == (10240, 8192)
    assert rows(tuned)[-1]["tokens"] == 10240
    assert result["metrics"]["fvu"] < 0.999 * without["metrics"]["fvu"]
    other = weights(plain)
    changed = [n for n, value in weights(tuned).items() if not torch.equal(value, other[n])]
    assert changed == ["b_dec"]

    # Interrupted in the phase, it goes on there.
    own = [*words, "name=halves", "fine_tune=bias"]
    assert sae_sweeps(home, *own, before=stopped_at(9216)).returncode == 143
    done = sae_sweeps(home, *own)
    assert done.returncode == 0 and "1 of them from a checkpoint" in done.stdout, done.stderr
    [(path, _)] = results(home, "halves")
    whole = weights(tuned)
    assert all(torch.equal(value, whole[name]) for name, value in weights(path).items())


# --- Resampling ----------------------------------------------------------------------------


def test_a_users_resampling_gives_latents_new_weights(home: Path) -> None:
    words = ["+sweep=made_up", "name=redrawn", "k=1", "d_sae=256", "resampling=redraw,none"]
    done = sae_sweeps(home, *words)
    assert done.returncode == 0, done.stderr
    (plain, _), (redrawn, result) = sorted(
        results(home, "redrawn"), key=lambda found: found[1]["choices"]["resampling"]
    )
    assert result["label"] == "token_choice + redraw"
    assert not [row for row in rows(plain) if "features/resampled" in row]
    told = {row["tokens"]: row.get("features/resampled") for row in rows(redrawn)}
    assert {count for tokens, count in told.items() if tokens < 4096} == {None}
    [count] = {count for tokens, count in told.items() if tokens >= 4096}
    assert count is not None and 0 < count < 256
    # What was drawn is still found, although it was trained on.
    drawn = torch.randn(int(count), 16, generator=torch.Generator().manual_seed(7))
    drawn = torch.nn.functional.normalize(drawn)
    here, there = ((weights(path)["W_dec"] @ drawn.T).amax(0) for path in (redrawn, plain))
    assert here.min() > 0.95 > there.max()


# --- Mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tracking=ledger", "tracking.folder=[a]"], "tracking.folder is ['a'], expected str."),
        (["data=sums", "data.largest=0"], "data.largest is 0, expected at least 1."),
        (
            ["hydra/launcher=polite", "hydra.launcher.niceness=-1"],
            "hydra.launcher.niceness is -1, expected at least 0.",
        ),
        (
            ["hydra/launcher=polite", "hydra.launcher.niceness=much"],
            "hydra.launcher.niceness is 'much', expected int.",
        ),
        (["fine_tune=bias", "fine_tune.lr=0"], "fine_tune.lr is 0, expected more than 0."),
        (
            ["resampling=redraw", "resampling.at_tokens=0"],
            "resampling.at_tokens is 0, expected more than 0.",
        ),
    ],
)
def test_a_mistake_in_them_is_refused_in_one_line(
    home: Path, words: list[str], expected: str
) -> None:
    done = sae_sweeps(home, "+sweep=tiny", "name=mistaken", *words)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"sae-sweeps: {expected}"]
    assert not (home / "outputs" / "mistaken").exists()
