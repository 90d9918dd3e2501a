"""Every finished run's `sae/` in SAELens itself: the same codes, reconstructions and figures.

SAELens pins another TransformerLens, hence it lives in a virtual environment of its own.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_sweeps.config.options import RunConfig
from sae_sweeps.interfaces import Architecture, Step
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.stream.live import Stream
from sae_sweeps.training.member import new_sae
from tests.support.places import ROOT

SAELENS = os.environ.get("SAELENS_PYTHON")
NEEDED = (
    "SAELENS_PYTHON names no interpreter: in a virtual environment of its own, "
    "`pip install torch==2.13.0` and then `pip install sae-lens==6.54.12`"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("saelens"),
    pytest.mark.skipif(not SAELENS, reason=NEEDED),
]

SIZES = {
    "d_sae": 256,
    "k": 12,
    "device": "cpu",
    "stream": {"batch_tokens": 1024, "chunk_tokens": 8192, "calibration_tokens": 8192},
    "training": {"tokens": 131072},
    "evaluation": {"tokens": 8192, "ce_tokens": 1024},
}
NO_AUX = {"aux_loss": "none"}
POINTS: list[dict[str, str]] = [
    {"method": "relu"},
    {"method": "gated"},
    {"method": "jumprelu"},
    {"method": "topk"},
    {"method": "mutual_choice"},
    {"method": "feature_choice"},
    {"architecture": "gated", "allocator": "mutual_choice", **NO_AUX},
    {"architecture": "jumprelu", "allocator": "feature_choice", **NO_AUX},
    {"architecture": "matryoshka", "allocator": "mutual_choice", **NO_AUX},
    {"architecture": "relu_april", "allocator": "none", **NO_AUX},
    {"architecture": "relu_april", "allocator": "token_choice", **NO_AUX},
    {"architecture": "relu_april", "allocator": "mutual_choice", **NO_AUX},
    {"architecture": "gated", "allocator": "token_choice", **NO_AUX},
]
"""The published methods, crossings, rows of any norm, and one that SAELens cannot express."""

NAMES = {
    "relu": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "token_choice + aux_k": "topk",
    "mutual_choice + aux_k": "jumprelu",
    "feature_choice + aux_k": "jumprelu",
    "gated × mutual_choice": "gated",
    "jumprelu × feature_choice": "jumprelu",
    "matryoshka × mutual_choice": "jumprelu",
    "relu_april": "standard",
    "relu_april × token_choice": "topk",
    "relu_april × mutual_choice": "jumprelu",
}
"""SAELens' architecture for each run's label."""

RELATIVE = 1e-5
"""Largest difference of codes and reconstructions, as a share of the largest value."""
EDGE = 1e-6
"""An entry this near its threshold, as a share of the largest affinity, may fall to either side."""


@dataclass(frozen=True)
class Trained:
    """A finished run, and what SAELens made of its folder."""

    folder: Path
    result: dict[str, Any]
    theirs: dict[str, Tensor]
    metadata: dict[str, Any]


def python(interpreter: str, words: list[str], cwd: Path) -> None:
    """Run an interpreter on the checkout; its error output is the assertion's message."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if interpreter != sys.executable:
        env.pop("PYTHONPATH")
    line = [interpreter, *words]
    done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the sweep by its command line, from a sweep file of its own."""
    home = tmp_path_factory.mktemp("saelens")
    points = {"hydra": {"sweeper": {"points": POINTS}}}
    (home / "mine" / "sweep").mkdir(parents=True)
    text = json.dumps({"name": "exported", **SIZES, **points})  # JSON is YAML
    (home / "mine" / "sweep" / "exported.yaml").write_text(f"# @package _global_\n{text}\n")
    words = ["--config-dir", "mine", "+sweep=exported", "tracking=off"]
    python(sys.executable, ["-m", "sae_sweeps", *words, "hydra.launcher.progress=off"], home)
    return home


@pytest.fixture(scope="module")
def stream(folder: Path) -> Stream:
    """The runs' common stream."""
    config = RunConfig.of(results(folder)[0][1]["config"])
    with ThreadPoolExecutor(1) as pool:
        return Harvest([config], torch.device("cpu"), pool).stream(config)


def results(home: Path) -> list[tuple[Path, dict[str, Any]]]:
    paths = sorted((home / "outputs" / "exported" / "runs").glob("*/result.json"))
    return [(path.parent, json.loads(path.read_text())) for path in paths]


@pytest.fixture(scope="module")
def x(stream: Stream) -> Tensor:
    """The held-out activations that the runs were measured on, in the model's own units."""
    return stream.unscaled(stream.held_out)


@pytest.fixture(scope="module")
def trained(folder: Path, x: Tensor) -> dict[str, Trained]:
    """All runs that SAELens can express, by label, after SAELens has read them."""
    made = {result["label"]: (path, result) for path, result in results(folder)}
    save_file({"x": x.contiguous()}, folder / "x.safetensors")
    written = [path for path, _ in made.values() if (path / "sae").exists()]
    outs = {str(path / "sae"): str(folder / "read" / path.name) for path in written}
    jobs = {"activations": str(folder / "x.safetensors"), "folders": outs}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = ROOT / "tests" / "saelens" / "read.py"
    python(str(SAELENS), [str(script), str(folder / "jobs.json")], folder)
    read: dict[str, Trained] = {}
    for label, (path, result) in made.items():
        out = folder / "read" / path.name
        if out.exists():
            metadata = json.loads((out / "metadata.json").read_text())
            read[label] = Trained(path, result, load_file(out / "out.safetensors"), metadata)
    return read


@torch.no_grad()
def ours(run: Trained, x: Tensor) -> tuple[Architecture, Step]:
    """Our own SAE, in evaluation mode, from the run's checkpoint."""
    sae = new_sae(RunConfig.of(run.result["config"]), x.shape[1]).eval()
    sae.load_state_dict(load_file(run.folder / "checkpoint" / "weights.safetensors"))
    return sae, sae(x, torch.zeros(sae.W_dec.shape[0], dtype=torch.bool))


def norms(sae: Architecture) -> Tensor:
    """The decoder rows' norms, which SAELens finds in the encoder."""
    return sae.W_dec.detach().norm(dim=1)


@torch.no_grad()
def margins(sae: Architecture, step: Step) -> Tensor:
    """How far each entry is from being decided otherwise, as a share of the largest affinity.

    A threshold is the allocator's, JumpReLU's own, or 0; for token choice it lies half-way between
    the k-th and the next affinity of the token, so that ties have margin 0.
    """
    rule, affinities = sae.allocator.inference(), step.pre_acts.values * norms(sae)
    assert rule is not None
    threshold = torch.zeros(affinities.shape[1])
    if rule.threshold is not None:
        threshold = rule.threshold.clamp(min=0)
    if "log_threshold" in dict(sae.named_parameters()):
        threshold = threshold.maximum(sae.get_parameter("log_threshold").exp())
    if rule.k is not None:
        top = affinities.topk(rule.k + 1, dim=1).values
        threshold = top[:, -2:].mean(1, keepdim=True)
    return (affinities - threshold).abs() / affinities.abs().max()


def test_each_run_has_the_architecture_that_fits(folder: Path, trained: dict[str, Trained]) -> None:
    found = {label: run.metadata["architecture"] for label, run in trained.items()}
    assert found == NAMES
    [left_out] = [path for path, r in results(folder) if r["label"] == "gated × token_choice"]
    assert not (left_out / "sae").exists()
    assert "sae/ is not written" in (left_out / "run.log").read_text()


@pytest.mark.parametrize("label", NAMES)
def test_the_run_is_worth_comparing(trained: dict[str, Trained], x: Tensor, label: str) -> None:
    """It has learnt something, and is far from its first weights."""
    run = trained[label]
    assert run.result["metrics"]["fvu"] < 0.7
    assert 4 < run.result["metrics"]["l0"] < 40
    assert run.result["metrics"]["dead_frac"] < 0.5
    sae, step = ours(run, x)
    assert (sae.W_enc - sae.W_dec.T * 0.6).norm() > 0.1 * sae.W_enc.norm()
    assert step.acts.l0() > 4
    rule = sae.allocator.inference()
    assert rule is not None
    assert rule.threshold is None or (rule.threshold > 0).all()


@pytest.mark.parametrize("label", NAMES)
def test_codes_and_reconstructions_are_the_same(
    trained: dict[str, Trained], x: Tensor, label: str
) -> None:
    """Entries at the edge of their threshold are excused, with the tokens that they belong to.

    They may be a handful; every other active entry must be active in both.
    """
    run = trained[label]
    sae, step = ours(run, x)
    codes, their_codes = step.acts.dense() * norms(sae), run.theirs["codes"]
    assert codes.shape == their_codes.shape
    different = (codes > 0) != (their_codes > 0)
    edge = margins(sae, step) < EDGE
    invisible = torch.maximum(codes, their_codes) < EDGE * codes.max()  # a gated magnitude near 0
    assert (different & ~edge & ~invisible).sum() == 0
    excused = (different & edge).any(1)
    assert excused.sum() <= 3
    same = ~excused
    assert (codes - their_codes)[same].abs().max() <= RELATIVE * codes.max()
    recon, their_recon = step.recon[same], run.theirs["recon"][same]
    assert (recon - their_recon).abs().max() <= RELATIVE * recon.abs().max()


@pytest.mark.parametrize("label", NAMES)
def test_saelens_finds_the_figures_of_the_result(
    trained: dict[str, Trained], x: Tensor, label: str
) -> None:
    run, figures = trained[label], trained[label].result["metrics"]
    error = (x - run.theirs["recon"]).double().pow(2).sum()
    spread = (x - x.mean(0)).double().pow(2).sum()
    active = run.theirs["codes"] > 0
    assert (error / spread).item() == pytest.approx(figures["fvu"], rel=1e-4)
    assert active.sum(1).double().mean().item() == pytest.approx(figures["l0"], rel=1e-4)
    assert (~active.any(0)).double().mean().item() == pytest.approx(figures["dead_frac"])
    assert error.item() / x.numel() == pytest.approx(figures["mse"], rel=1e-4)


@pytest.mark.parametrize("label", NAMES)
def test_metadata_survive(trained: dict[str, Trained], label: str) -> None:
    run = trained[label]
    found = run.metadata
    assert found["hook_name"] == "blocks.1.hook_resid_post"
    assert found["model_name"] == "embedded"
    assert (found["context_size"], found["prepend_bos"]) == (128, True)
    assert found["l0"] == run.result["metrics"]["l0"]
    own = found["sae_sweeps"]
    assert own["run"] == run.result["run"]
    assert own["config"] == run.result["config"]
    assert own["metrics"] == run.result["metrics"]


def test_saelens_knows_the_models_class(trained: dict[str, Trained]) -> None:
    """What `sae_lens.load_model` takes; its HookedTransformer has unprocessed weights, as ours."""
    known = {"HookedTransformer", "HookedMamba", "AutoModelForCausalLM"}
    assert {run.metadata["model_class_name"] for run in trained.values()} <= known
