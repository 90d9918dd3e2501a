"""Variants that a user brings along, trained by the real command line with no edit to the project.

Each is one Python file beside the command and one YAML file in a folder for `--config-dir`.
"""

import csv
import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.outside import TINY, lay_out, results, rows, sae_sweeps, stopped_at, weights
from tests.support.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("outside")]

NOISY = '''
"""Token choice among affinities that are noisy in training."""

from typing import Annotated

import torch
from annotated_types import Ge

from sae_sweeps.engine.acts import Selection
from sae_sweeps.interfaces import Allocator, Inference
from sae_sweeps.marks import AtMost


class Noisy(Allocator):
    """sum_i S_bi <= k for every token b."""

    sets_budget = True

    def __init__(
        self, d_sae: int, *, k: Annotated[int, AtMost("d_sae")], noise: Annotated[float, Ge(0)]
    ) -> None:
        super().__init__()
        self.k, self.noise = k, noise
        self.generator = torch.Generator().manual_seed(0)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, affinities):
        values = affinities.values
        if self.training:
            noise = torch.randn(values.shape, generator=self.generator)
            values = values + self.noise * values.std() * noise
            self.draws += 1
        latents = values.topk(self.k, dim=1).indices.sort(dim=1).values
        starts = torch.arange(len(values))[:, None] * values.shape[1]
        return Selection((starts + latents).flatten())

    def observe(self, step, progress):
        pass

    def inference(self):
        return Inference(k=self.k, threshold=None)

    def rescale(self, factor):
        pass
'''

SHARE = '''
"""What comes near the token's largest affinity is active: a rule that SAELens has not."""

from sae_sweeps.engine.acts import Selection
from sae_sweeps.interfaces import Allocator


class Share(Allocator):
    """S_bi = 1[affinity_bi > share * max_j affinity_bj]."""

    sets_budget = True

    def __init__(self, d_sae: int, *, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, affinities):
        values = affinities.values
        least = self.share * values.max(dim=1, keepdim=True).values.clamp(min=0)
        return Selection((values > least).flatten().nonzero().squeeze(1))

    def observe(self, step, progress):
        pass

    def inference(self):
        return None

    def rescale(self, factor):
        pass
'''

SKIP = '''
"""An SAE with a linear path around its latents."""

import torch
from torch import nn

from sae_sweeps.engine.acts import decode
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.architecture import weights
from sae_sweeps.interfaces import Architecture, Step


class Skip(Architecture):
    """recon = acts W_dec + b_dec + (x - b_dec) W_skip, with W_skip of low rank."""

    def __init__(self, d_in: int, d_sae: int, allocator, *, encoder_scale: float, rank: int):
        super().__init__()
        weights.create(self, d_in, d_sae)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.down = nn.Parameter(torch.zeros(d_in, rank))
        self.up = nn.Parameter(torch.zeros(rank, d_in))
        self.allocator, self.encoder_scale = allocator, encoder_scale

    def initialise(self, generator, mean):
        weights.draw(self, generator, mean, self.encoder_scale)
        nn.init.normal_(self.down, std=0.1, generator=generator)

    def forward(self, x, dead):
        pre_acts = weights.project(self, x, self.b_enc)
        selection = self.allocator(Affinities(pre_acts))
        selected = pre_acts.at(selection)
        acts = selected.relu()
        recon = decode(acts, self.W_dec) + self.b_dec + (x - self.b_dec) @ self.down @ self.up
        budgeted = self.allocator.sets_budget
        return Step(x, pre_acts, selection, selected, acts, recon, self.W_dec, dead, budgeted)

    def penalty(self, step):
        return step.x.new_zeros(())

    def observe(self, step, progress):
        self.allocator.observe(step, progress)

    def diagnostics(self):
        return {"train/skip_norm": (self.down @ self.up).norm().item()}

    @torch.no_grad()
    def rescale(self, factor):
        self.b_enc *= factor
        self.b_dec *= factor
        self.allocator.rescale(factor)

    def saelens(self):
        return None
'''

PULL = '''
"""Pulls pre-activations to 0."""

from sae_sweeps.engine.acts import Selection
from sae_sweeps.interfaces import AuxLoss


class Pull(AuxLoss):
    """coef * mean of squared pre-activations."""

    def __init__(self, d_in: int, d_sae: int, *, coef: float) -> None:
        super().__init__()
        self.coef = coef

    def forward(self, step):
        return self.coef * step.pre_acts.at(Selection(None)).values.pow(2).mean()
'''

PICKY = SHARE.replace("class Share", "class Picky").replace(
    "        self.share = share",
    "        if share > 0.5:\n"
    "            raise ValueError(f'share is {share}, expected at most 0.5')",
)

DICTIONARY = '''
"""Sparse sums of random directions, drawn anew from the row's number."""

import torch

from sae_sweeps.interfaces import TargetModel


class Dictionary(TargetModel):
    """x = codes D, each code active with the given probability."""

    has_loss = False
    tokens_per_row = 16

    def __init__(self, data, device, *, d_in: int, atoms: int, probability: float) -> None:
        self.device, self.d_in, self.probability = device, d_in, probability
        self.directions = torch.randn(atoms, d_in, generator=torch.Generator().manual_seed(0))
        self.description = {"model_name": "dictionary", "hook_name": None}

    def row_count(self, split):
        return 2000 if split == "train" else 200

    def activations(self, split, rows):
        return torch.cat([self.row(int(row) + 2000 * (split == "held_out")) for row in rows])

    def row(self, seed):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.rand(self.tokens_per_row, len(self.directions), generator=generator)
        return codes.where(codes < self.probability, 0.0) @ self.directions / self.probability

    def spliced_losses(self, split, rows, splice):
        raise NotImplementedError
'''

SIGN = '''
"""Steps of one length along the sign of a running mean of the gradient (signum)."""

import torch

from sae_sweeps.interfaces import Optimizer


class Sign(Optimizer):
    """p -= lr * factor * sign(m), m the running mean."""

    def __init__(self, parameters, factors, *, lr: float, beta: float) -> None:
        self.trained, self.factors, self.lr, self.beta = parameters, factors, lr, beta
        self.means = [torch.zeros_like(parameter) for parameter in parameters]

    def zero_grad(self):
        for parameter in self.trained:
            parameter.grad = None

    @torch.no_grad()
    def update(self, lr):
        for parameter, factor, mean in zip(self.trained, self.factors, self.means):
            if parameter.grad is not None:
                mean.lerp_(parameter.grad, 1 - self.beta)
                parameter.sub_(lr * factor * mean.sign())

    def forget(self, parameter, dim, latents):
        index = next(i for i, other in enumerate(self.trained) if other is parameter)
        self.means[index].index_fill_(dim, latents, 0)

    def tensors(self):
        return {str(index): mean for index, mean in enumerate(self.means)}

    def restore(self, tensors):
        for index, mean in enumerate(self.means):
            mean.copy_(tensors[str(index)])
'''

COSINE = '''
"""Half a cosine from the peak to a last share of it."""

import math

from sae_sweeps.interfaces import Schedule


class Cosine(Schedule):
    """last + (1 - last) (1 + cos(pi * share of the tokens)) / 2."""

    def __init__(self, tokens: int, *, last: float) -> None:
        self.tokens, self.last = tokens, last

    def factor(self, tokens, batch):
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * tokens / self.tokens)) / 2
'''

FAITHFUL = '''
"""How many tokens are reconstructed well, and how far the pre-bias is from 0."""

from typing import Annotated

import torch
from annotated_types import Gt

from sae_sweeps.interfaces import Measurement
from sae_sweeps.measures import Column, Measure, Panel


class Faithful(Measurement):
    """Share of tokens whose squared error is below a share of their squared length."""

    measures = (
        Measure(
            "faithful_frac",
            "faithful tokens",
            "%",
            "higher",
            scale=100.0,
            panel=Panel(floor=0.0),
            column=Column("faithful %", ".1f", note="tokens of a small error"),
        ),
        Measure("mean_bias", "mean absolute pre-bias"),
    )

    def __init__(self, *, below: Annotated[float, Gt(0)]) -> None:
        self.below = below

    def figures(self, sae, acts, target):
        recon = sae(acts, torch.zeros(len(sae.W_dec), dtype=torch.bool)).recon
        errors = (acts - recon).pow(2).sum(1) / acts.pow(2).sum(1)
        faithful = (errors < self.below).float().mean()
        return {"faithful_frac": faithful, "mean_bias": sae.b_dec.abs().mean()}
'''

MODULES = {
    "my_sign": SIGN,
    "my_cosine": COSINE,
    "my_noisy": NOISY,
    "my_share": SHARE,
    "my_picky": PICKY,
    "my_skip": SKIP,
    "my_pull": PULL,
    "my_dictionary": DICTIONARY,
    "my_faithful": FAITHFUL,
}

OPTION_FILES = {
    "optimizer/sign": "_target_: my_sign.Sign\nlr: 1e-3\nbeta: 0.9\n",
    "schedule/cosine": "_target_: my_cosine.Cosine\nlast: 0.25\n",
    "allocator/noisy": "_target_: my_noisy.Noisy\nk: ${k}\nnoise: 1.0\n",
    "allocator/share": "_target_: my_share.Share\nshare: 0.6\n",
    "allocator/picky": "_target_: my_picky.Picky\nshare: 0.6\n",
    "architecture/skip": "_target_: my_skip.Skip\nencoder_scale: 0.6\nrank: 4\n",
    "aux_loss/pull": "_target_: my_pull.Pull\ncoef: 0.01\n",
    "measure/faithful": "_target_: my_faithful.Faithful\nbelow: 0.5\n",
    "target_model/dictionary": """
defaults:
  - override /data@_global_.data: none
_target_: my_dictionary.Dictionary
d_in: 24
atoms: 40
probability: 0.08
""",
    "budget/small": "# @package _global_\nd_sae: 96\ntraining:\n  tokens: 8192\n",
    "budget/smaller": "# @package _global_\nd_sae: 64\ntraining:\n  tokens: 4096\n",
    "pace/gentle": "lr: 1e-3\nwarmup: 0.25\n",
    "pace/steep": "lr: 4e-3\nwarmup: 0.125\n",
    "sweep/tiny": TINY,
    "sweep/bench": """
# @package _global_
defaults:
  - tiny
  - override /target_model: dictionary
  - override /aux_loss: none
name: bench
optimizer:
  lr: ${pace.lr}
schedule:
  warmup_tokens: ${share:${pace.warmup}}
hydra:
  sweeper:
    params:
      architecture: skip,relu
      allocator: noisy,share
      +pace: gentle,steep
""",
}

Results = dict[tuple[Any, ...], tuple[Path, dict[str, Any]]]
"""A run's folder and result, by what sets it apart."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: modules, and config files in a folder of their own."""
    folder = tmp_path_factory.mktemp("outside")
    lay_out(folder, MODULES, OPTION_FILES)
    return folder


# --- Allocator, auxiliary loss, a group of budgets -----------------------------------------


@pytest.fixture(scope="module")
def crossed(home: Path) -> Results:
    """Budget x allocator x auxiliary loss, on the embedded model."""
    axes = ["+budget=small,smaller", "allocator=noisy,token_choice", "aux_loss=pull,none"]
    done = sae_sweeps(home, "-m", "+sweep=tiny", *axes)
    assert done.returncode == 0, done.stderr
    return {
        (r["choices"]["budget"], r["choices"]["allocator"], r["choices"]["aux_loss"]): (path, r)
        for path, r in results(home, "tiny")
    }


def test_every_point_is_trained_under_its_label(crossed: Results, home: Path) -> None:
    assert len(crossed) == 8
    for (_, allocator, aux_loss), (path, result) in crossed.items():
        label = allocator if aux_loss == "none" else f"{allocator} + {aux_loss}"
        assert result["label"] == label
        slug = label.replace(" + ", "-").replace("_", "-")
        assert path.name.startswith(f"{slug}-k4-s0-")
        assert 0 < result["metrics"]["fvu"] < 1 and result["metrics"]["l0"] <= 4
        assert result["metrics"]["ce"] > result["metrics"]["ce_clean"]
    table = (home / "outputs" / "tiny" / "pareto.csv").read_text()
    for label in ("noisy", "noisy + pull", "token_choice + pull", "token_choice"):
        assert f"{label}," in table


def test_a_new_groups_options_are_in_force(crossed: Results) -> None:
    sizes = {"small": (96, 8192), "smaller": (64, 4096)}
    for (budget, _, _), (path, result) in crossed.items():
        d_sae, tokens = sizes[budget]
        assert (result["d_sae"], result["tokens"]) == (d_sae, tokens)
        assert result["config"]["schedule"]["warmup_tokens"] == round(0.05 * tokens)
        assert "budget" not in result["config"]
        assert weights(path)["W_dec"].shape == (d_sae, 128)


def test_the_allocator_is_the_users(crossed: Results) -> None:
    for (budget, allocator, aux_loss), (path, result) in crossed.items():
        saved = weights(path)
        if allocator == "token_choice":
            assert not [name for name in saved if name.startswith("allocator.")]
            continue
        evaluated = result["evaluation"]["tokens"] // result["config"]["stream"]["batch_tokens"]
        batches = {"small": 32, "smaller": 16}[budget]
        assert saved["allocator.draws"] == batches + evaluated  # as in training, too
        assert result["config"]["allocator"] == {
            "_target_": "my_noisy.Noisy",
            "k": 4,
            "noise": 1.0,
        }
        exact, _ = crossed[budget, "token_choice", aux_loss]
        assert rows(path)[-1]["train/fvu"] > 1.02 * result["metrics"]["fvu"]  # noise ends
        assert not torch.equal(saved["W_enc"], weights(exact)["W_enc"])
        cfg = json.loads((path / "sae" / "cfg.json").read_text())
        assert cfg["architecture"] == "topk" and cfg["k"] == 4


def test_the_auxiliary_loss_is_the_users(crossed: Results) -> None:
    for (budget, allocator, aux_loss), (path, _) in crossed.items():
        logged = [row["train/aux_loss"] for row in rows(path)]
        if aux_loss == "none":
            assert set(logged) == {0.0}
            continue
        assert min(logged) > 0
        without = weights(crossed[budget, allocator, "none"][0])
        assert not torch.equal(weights(path)["W_enc"], without["W_enc"])


# --- Architecture, target model, a group read by interpolation -----------------------------


@pytest.fixture(scope="module")
def bench(home: Path) -> Results:
    """A sweep file of the user's: architecture x allocator x schedule, on a new target model."""
    done = sae_sweeps(home, "+sweep=bench")
    assert done.returncode == 0, done.stderr
    return {
        (r["choices"]["architecture"], r["choices"]["allocator"], r["choices"]["pace"]): (
            path,
            r,
        )
        for path, r in results(home, "bench")
    }


def test_a_users_sweep_file_trains_its_points(bench: Results) -> None:
    assert len(bench) == 8
    labels = {result["label"] for _, result in bench.values()}
    assert labels == {"noisy", "share", "skip × noisy", "skip × share"}


def test_the_architecture_is_the_users(bench: Results) -> None:
    for (architecture, allocator, pace), (path, result) in bench.items():
        last = rows(path)[-1]
        if architecture == "relu":
            assert "train/skip_norm" not in last and "up" not in weights(path)
            continue
        saved = weights(path)
        assert saved["down"].shape == (24, 4) and saved["up"].norm() > 0.01
        norm = (saved["down"] @ saved["up"]).norm().item()
        assert last["train/skip_norm"] == pytest.approx(norm, rel=1e-4)
        assert not (path / "sae").exists()
        assert "sae/ is not written" in (path / "run.log").read_text()
        plain = bench["relu", allocator, pace][1]
        assert result["metrics"]["fvu"] < plain["metrics"]["fvu"]  # the path around helps


def test_the_target_model_is_the_users(bench: Results) -> None:
    for path, result in bench.values():
        assert weights(path)["W_dec"].shape == (64, 24)
        assert result["choices"]["data"] == "none"
        assert not [name for name in result["metrics"] if name.startswith("ce")]
        assert result["config"]["target_model"]["_target_"] == "my_dictionary.Dictionary"
        assert 0 < result["metrics"]["fvu"] < 0.8


def test_a_new_groups_values_reach_options_by_interpolation(bench: Results) -> None:
    wanted = {"gentle": (1e-3, 2048), "steep": (4e-3, 1024)}
    for (architecture, allocator, pace), (path, result) in bench.items():
        lr = result["config"]["optimizer"]["lr"]
        assert (lr, result["config"]["schedule"]["warmup_tokens"]) == wanted[pace]
        assert max(row["train/lr"] for row in rows(path)) == pytest.approx(lr)
        other = bench[architecture, allocator, "gentle" if pace == "steep" else "steep"]
        assert not torch.equal(weights(path)["W_enc"], weights(other[0])["W_enc"])


def test_a_rule_that_saelens_has_not_is_not_saved_as_another(bench: Results) -> None:
    """Else the user's per-token rule would be a plain ReLU to SAELens."""
    for pace in ("gentle", "steep"):
        path, result = bench["relu", "share", pace]
        assert result["metrics"]["l0"] < 10
        assert not (path / "sae").exists()
        assert "sae/ is not written" in (path / "run.log").read_text()


# --- Optimiser and schedule ----------------------------------------------------------------


@pytest.fixture(scope="module")
def moved(home: Path) -> Results:
    """Optimiser x schedule, with resampling and a last phase."""
    words = ["method=relu", "resampling=neuron_resampling", "fine_tune=scale", "name=moved"]
    axes = ["optimizer=sign,adam", "schedule=cosine,linear"]
    done = sae_sweeps(home, "+sweep=tiny", *words, *axes)
    assert done.returncode == 0, done.stderr
    return {
        (r["choices"]["optimizer"], r["choices"]["schedule"]): (path, r)
        for path, r in results(home, "moved")
    }


def test_optimisers_and_schedules_are_the_users(moved: Results) -> None:
    assert len(moved) == 4
    for (optimizer, schedule), (path, result) in moved.items():
        unusual = [name for name in (optimizer, schedule) if name not in ("adam", "linear")]
        assert result["label"] == " + ".join(["relu", "neuron_resampling", "scale", *unusual])
        assert 0 < result["metrics"]["fvu"] < 1
        rates = [row["train/lr"] for row in rows(path) if row["tokens"] <= 8192]
        peak = result["config"]["optimizer"]["lr"]
        assert peak == (1e-3 if optimizer == "sign" else 3e-3)
        if schedule == "cosine":
            assert rates == sorted(rates, reverse=True)
            assert rates[0] > 0.9 * peak and 0.25 * peak < rates[-1] < 0.3 * peak
        else:
            assert rates[0] < 0.8 * peak and rates[-1] < 0.2 * peak
    trained = [weights(path)["W_enc"] for path, _ in moved.values()]
    assert not any(torch.equal(one, other) for one, other in combinations(trained, 2))


def test_a_run_with_a_users_optimiser_goes_on_where_it_was(home: Path, moved: Results) -> None:
    """Its state is in the checkpoint: two halves come to what the whole came to."""
    words = ["+sweep=tiny", "method=relu", "optimizer=sign", "schedule=cosine", "name=halves"]
    words += ["resampling=neuron_resampling", "fine_tune=scale"]
    assert sae_sweeps(home, *words, before=stopped_at(4096)).returncode == 143
    assert list((home / "outputs" / "halves").glob("runs/*/checkpoint/step-*"))
    done = sae_sweeps(home, *words)
    assert done.returncode == 0 and "1 of them from a checkpoint" in done.stdout, done.stderr
    [(path, _)] = results(home, "halves")
    whole = weights(moved["sign", "cosine"][0])
    assert all(torch.equal(value, whole[name]) for name, value in weights(path).items())


# --- A measure -----------------------------------------------------------------------------


def test_a_finished_sweep_is_measured_by_the_users_measure(home: Path) -> None:
    """Nothing is trained for it, and other figures stay what they were."""
    axes = ["+sweep=tiny", "name=measured", "target_model=dictionary", "allocator=token_choice"]
    done = sae_sweeps(home, *axes, "k=4,8")
    assert done.returncode == 0 and "faithful" not in done.stdout, done.stderr
    plain = {path.name: result["metrics"] for path, result in results(home, "measured")}
    trained = written(home)

    done = sae_sweeps(home, *axes, "k=4,8", "measure=faithful")
    assert done.returncode == 0, done.stderr
    assert "measured: 0 runs to train, 2 to measure anew\n" in done.stdout
    assert "faithful %" in done.stdout and "faithful %: tokens of a small error" in done.stdout
    for path, result in results(home, "measured"):
        saved, metrics = weights(path), result["metrics"]
        assert 0 < metrics["faithful_frac"] < 1
        assert metrics["mean_bias"] == pytest.approx(saved["b_dec"].abs().mean().item())
        assert metrics["fvu"] == pytest.approx(plain[path.name]["fvu"], rel=1e-4)
        assert f"{100 * metrics['faithful_frac']:.1f}" in done.stdout
        assert result["config"]["measure"] == {"_target_": "my_faithful.Faithful", "below": 0.5}
    assert written(home) == trained
    assert_shown(home)

    assert "0 runs to train, 2 finished before" in sae_sweeps(home, *axes, "k=4,8").stdout
    done = sae_sweeps(home, *axes, "k=4,8", "measure=faithful", "measure.below=0.2")
    assert "0 runs to train, 2 to measure anew" in done.stdout
    before = {result["metrics"]["faithful_frac"] for _, result in results(home, "measured")}
    done = sae_sweeps(home, *axes, "k=4,8,16", "measure=faithful", "measure.below=0.2")
    assert "1 run to train, 2 finished before" in done.stdout
    shares = {result["metrics"]["faithful_frac"] for _, result in results(home, "measured")}
    assert len(shares) == 3 and before < shares

    done = sae_sweeps(home, *axes, "k=32")  # and a run without it
    assert "1 run to train" in done.stdout and done.stdout.count(" - ") == 1, done.stdout
    assert_shown(home, lacking=1)


def written(home: Path) -> dict[Path, int]:
    """When the weights were written."""
    paths = [path / "checkpoint/weights.safetensors" for path, _ in results(home, "measured")]
    return {path: path.stat().st_mtime_ns for path in paths}


def assert_shown(home: Path, lacking: int = 0) -> None:
    """Its figures are in the table and on the page, which import nothing of the user's."""
    folder, runs = home / "outputs" / "measured", results(home, "measured")
    code = "import sys; from sae_sweeps.__main__ import main; main()"
    line = [sys.executable, "-c", code, "report", str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=home.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "faithful %" in done.stdout, done.stderr
    with (folder / "pareto.csv").open(newline="") as file:
        lines = {row["run"]: row for row in csv.DictReader(file)}
    for path, result in runs:
        told = [lines[path.name][name] for name in ("faithful_frac", "mean_bias")]
        known = [result["metrics"].get(name, "") for name in ("faithful_frac", "mean_bias")]
        assert told == [str(value) for value in known]
    assert [row["mean_bias"] for row in lines.values()].count("") == lacking
    page = (folder / "report.html").read_text()
    [text] = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page)
    content = json.loads(text)
    drawn = [panel["measure"] for panel in content["panels"]]
    assert drawn == ["fvu", "dead_frac", "faithful_frac"]
    assert content["panels"][-1]["title"] == "faithful tokens, %"
    assert "faithful_frac" in content["columns"]


@pytest.mark.parametrize(
    ("objective", "measure", "expected"),
    [
        ("faithful_frac", "faithful", None),
        ("[fvu,mean_bias]", "faithful", None),
        ("faithful", "faithful", "is 'faithful', expected of l0"),
        ("faithful", "faithful", "Did you mean 'faithful_frac'?"),
        ("faithful_frac", "none", "is 'faithful_frac', expected of l0"),
    ],
)
def test_its_figures_can_be_an_objective(
    home: Path, objective: str, measure: str, expected: str | None
) -> None:
    words = ["+sweep=tiny", "name=objective", "target_model=dictionary", f"measure={measure}"]
    done = sae_sweeps(home, *words, "aux_loss=none", f"hydra.launcher.objective={objective}")
    if expected is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1 and expected in done.stderr
        assert len(done.stderr.splitlines()) == 1


# --- Repeating, and mistakes ---------------------------------------------------------------


def test_a_repeated_command_trains_nothing(home: Path, bench: Results) -> None:
    before = {path: (path / "result.json").stat().st_mtime_ns for path, _ in bench.values()}
    done = sae_sweeps(home, "+sweep=bench")
    assert done.returncode == 0, done.stderr
    assert "8 finished before" in done.stdout
    assert before == {path: (path / "result.json").stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("allocator.noise=much", "allocator.noise is 'much', expected float."),
        ("allocator.noise=-1", "allocator.noise is -1, expected at least 0."),
        ("allocator.nois=1", "allocator.nois is not an option"),
        ("allocator.k=65", "allocator.k is 65, expected at most d_sae, which is 64."),
        ("+budget=tiny", "budget has no option 'tiny', expected one of small, smaller."),
    ],
)
def test_a_mistake_in_them_is_refused_in_one_line(home: Path, word: str, expected: str) -> None:
    done = sae_sweeps(home, "+sweep=tiny", "name=mistaken", "allocator=noisy", word)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert expected in line
    assert not (home / "outputs" / "mistaken").exists()


def test_what_a_constructor_refuses_is_one_line_before_anything_starts(home: Path) -> None:
    done = sae_sweeps(home, "+sweep=tiny", "name=picky", "allocator=picky")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "sae-sweeps: my_picky.Picky: share is 0.6, expected at most 0.5"
    )
    assert "Traceback" not in done.stderr
    assert not (home / "outputs" / "picky").exists()
