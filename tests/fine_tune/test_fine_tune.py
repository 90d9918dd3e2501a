"""The last phase: learnt scale and KL fine-tuning, alone and at the end of a run."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from sae_sweeps.embedded import MODEL
from sae_sweeps.errors import ConfigError
from sae_sweeps.fine_tune.kl import KL
from sae_sweeps.fine_tune.scale import Scale
from sae_sweeps.interfaces import Architecture, Divergence, FineTune, Progress, Step
from sae_sweeps.record.result import Result
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.stream.live import Stream, in_order
from sae_sweeps.training.fine_tuner import FineTuner
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer, squared_error
from tests.support.places import CONF
from tests.support.small import small_run, train
from tests.support.unchecked import unchecked

D_IN, D_SAE = 8, 64
METHODS = ["relu", "gated", "jumprelu", "topk", "mutual_choice", "feature_choice"]
PHASES = sorted({path.stem for path in (CONF / "fine_tune").glob("*.yaml")} - {"none"})
LENGTH = ["fine_tune.tokens=1024", "fine_tune.lr=1e-2"]
NONE_DEAD = torch.zeros(D_SAE, dtype=torch.bool)


def sae_of(folder: Path, *overrides: str) -> Architecture:
    sae = new_sae(small_run(folder, *overrides).config, D_IN)
    sae.initialise(torch.Generator().manual_seed(0), torch.full((D_IN,), 0.1))
    return sae


def batch_of(tokens: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(seed)) * 0.3


# --- Scale ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_scale_against_the_naive_loss(method: str, tmp_path: Path) -> None:
    sae, x = sae_of(tmp_path, f"method={method}").double(), batch_of(50).double()
    scale = Scale(D_IN, D_SAE, tokens=1, lr=1.0).double()
    with torch.no_grad():
        scale.factors.copy_(torch.linspace(0.5, 1.5, D_SAE))
        acts = sae.eval()(x, NONE_DEAD).acts.dense()
    step, loss = scale(sae.train(), x, NONE_DEAD, None)
    loss.backward()

    factors = scale.factors.detach().clone().requires_grad_()
    recon = (factors * acts) @ sae.W_dec.detach() + sae.b_dec.detach()
    naive = ((x - recon) ** 2).sum(1).mean()
    naive.backward()
    torch.testing.assert_close(step.recon, recon, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=0)
    torch.testing.assert_close(scale.factors.grad, factors.grad, rtol=1e-6, atol=1e-12)
    assert all(parameter.grad is None for parameter in sae.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_fold_reconstructs_what_the_phase_did(method: str, tmp_path: Path) -> None:
    sae, x = sae_of(tmp_path, f"method={method}"), batch_of(50)
    scale = Scale(D_IN, D_SAE, tokens=1, lr=1.0)
    with torch.no_grad():
        scale.factors.copy_(torch.linspace(0.5, 1.5, D_SAE))
        step, _ = scale(sae, x, NONE_DEAD, None)
        scale.fold(sae)
        folded = sae.eval()(x, NONE_DEAD)
    assert folded.acts.dense().equal(step.acts.dense())
    torch.testing.assert_close(folded.recon, step.recon, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scale_finds_what_least_squares_finds(tmp_path: Path) -> None:
    sae, x = sae_of(tmp_path, "method=relu"), batch_of(4096)
    with torch.no_grad():
        step = sae.eval()(x, NONE_DEAD)
        # latent i contributes column i: acts_bi * d_i, all dimensions and tokens below one another
        columns = step.acts.dense()[:, None, :] * sae.W_dec.T[None]
        best = torch.linalg.lstsq(columns.flatten(0, 1), (x - sae.b_dec).flatten()[:, None])
        least = (columns @ best.solution[:, 0] + sae.b_dec - x).pow(2).sum(1).mean()
    trainer = trainer_of(sae, tmp_path)
    tuner = FineTuner(trainer, Scale(D_IN, D_SAE, tokens=600 * len(x), lr=0.02), no_stream())
    before = tuner.step(x, wanted=True)["train/loss"]
    with unchecked():
        for _ in range(599):
            tuner.step(x, wanted=False)
    after = tuner.step(x, wanted=True)["train/loss"]
    assert least < before / 2
    assert 0 < after - least < 0.05 * (before - least)


def trainer_of(sae: Architecture, folder: Path) -> Trainer:
    long = ["training.tokens=1e6", "stream.repeat=true"]
    config = small_run(folder, "training.gradient_clip_norm=1e9", "optimizer.lr=0.01", *long).config
    aux_loss = small_run(folder, "aux_loss=none").config.nodes["aux_loss"]
    return new_trainer(replace(config, nodes=config.nodes | {"aux_loss": aux_loss}), sae)


def no_stream() -> Stream:
    """For phases that do not ask for contexts."""
    return Stream.__new__(Stream)


def test_scale_undoes_the_shrinkage_of_one_feature(tmp_path: Path) -> None:
    """Under an L1 penalty c a feature of size 1 ends at 1 - c / 2 (METHODS 2.1); scaled, at 1."""
    c = 0.4
    overrides = ["method=relu", f"architecture.l1_coef={c}", "d_sae=1", "k=1"]
    config = small_run(tmp_path, *overrides).config
    sae = new_sae(config, D_IN)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(D_IN))
    direction = torch.nn.functional.normalize(batch_of(1), dim=1)
    on = (torch.arange(512) % 2 == 0).float()[:, None]
    x = on * direction  # half of the tokens have the feature
    with torch.no_grad():
        sae.W_dec.copy_(direction)
        sae.W_enc.copy_(direction.T)
    sae.b_dec.requires_grad_(False)
    trainer = trainer_of(sae, tmp_path)
    with unchecked():
        for _ in range(400):
            trainer.step(x, wanted=False)
    with torch.no_grad():
        shrunk = (sae.eval()(x, torch.zeros(1, dtype=torch.bool)).recon[0] @ direction[0]).item()
    assert shrunk == pytest.approx(1 - c / 2, abs=0.02)
    scale = Scale(D_IN, 1, tokens=400 * len(x), lr=0.02)
    tuner = FineTuner(trainer, scale, no_stream())
    with unchecked():
        for _ in range(400):
            tuner.step(x, wanted=False)
    scale.fold(sae)
    with torch.no_grad():
        mended = (sae.eval()(x, torch.zeros(1, dtype=torch.bool)).recon[0] @ direction[0]).item()
    assert mended == pytest.approx(1.0, abs=0.01)


# --- Another -------------------------------------------------------------------------------


class Bias(FineTune):
    """Trains the pre-bias alone, and lets its loss reach all the rest."""

    whole_contexts: ClassVar[bool] = False
    tokens = 64
    lr = 0.1

    def begin(self, sae: Architecture) -> list[nn.Parameter]:
        return [sae.b_dec]

    def forward(
        self, sae: Architecture, x: Tensor, dead: Tensor, divergence: Divergence | None
    ) -> tuple[Step, Tensor]:
        step = sae(x, dead)
        return step, squared_error(step)


def test_what_a_phase_does_not_train_stays_to_the_last_bit(tmp_path: Path) -> None:
    """Else rows of the decoder, which have a gradient, would be given unit norm once more."""
    sae = sae_of(tmp_path, "method=relu")
    tuner = FineTuner(trainer_of(sae, tmp_path), Bias(), no_stream())
    with torch.no_grad():
        sae.W_dec.mul_(1 + 1e-6)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    gradients: list[Tensor] = []
    sae.W_dec.register_hook(gradients.append)
    tuner.step(batch_of(32), wanted=False)
    assert gradients and sae.W_dec.grad is None  # it had one, and does not keep it
    changed = [n for n, value in sae.state_dict().items() if not value.equal(before[n])]
    assert changed == ["b_dec"]


# --- KL ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    config = small_run(tmp_path_factory.mktemp("stream"), "stream.centre=true").config
    with ThreadPoolExecutor(1) as pool:
        return Harvest([config], torch.device("cpu"), pool).stream(config)


def test_contexts_are_whole_rows_in_order(stream: Stream) -> None:
    width = stream.target.tokens_per_row
    rows = stream.order.rows("train", 3, 7)  # pyright: ignore[reportPrivateUsage]
    x, divergence = stream.contexts(3 * width + 5, 4 * width + width // 2)
    acts = stream.target.activations("train", rows)
    torch.testing.assert_close(x, (acts - stream.offset) * stream.scale)
    assert stream.contexts(0, 3)[0].shape[0] == width  # one row at least
    with torch.no_grad():
        assert divergence(x).abs() < 1e-6
        assert divergence(torch.zeros_like(x)) > 0.5


def test_divergence_against_hugging_face(stream: Stream) -> None:
    width = stream.target.tokens_per_row
    x, divergence = stream.contexts(0, 3 * width)
    recon = (x * 0.9).requires_grad_()
    found = divergence(recon)
    found.backward()
    assert recon.grad is not None

    tokens = stream.target.tokens["train"][stream.order.rows("train", 0, 3)]  # pyright: ignore
    model = GPT2LMHeadModel.from_pretrained(str(MODEL), dtype=torch.float32).eval()
    naive_recon = (x * 0.9).requires_grad_()

    def replaced(output: Tensor) -> Tensor:
        spliced = (naive_recon / stream.scale + stream.offset).view(3, width, -1)
        return torch.cat([output[:, :1], spliced], dim=1)

    clean = model(tokens).logits[:, 1:-1].double().log_softmax(-1)
    handle = model.transformer.h[1].register_forward_hook(
        lambda _m, _i, o: replaced(o) if isinstance(o, Tensor) else (replaced(o[0]), *o[1:])
    )
    spliced = model(tokens).logits[:, 1:-1].double().log_softmax(-1)
    handle.remove()
    naive = (clean.exp() * (clean - spliced)).sum(-1).mean()
    naive.backward()
    assert naive_recon.grad is not None
    assert found.item() == pytest.approx(naive.item(), rel=1e-4)
    scale = naive_recon.grad.abs().max()
    assert (recon.grad - naive_recon.grad).abs().max() < 1e-4 * scale


def test_in_order_hands_out_every_token_once() -> None:
    acts = torch.arange(12.0).view(6, 2)
    replace = in_order(acts)
    assert replace(torch.zeros(2, 2)).equal(acts[:2])
    assert replace(torch.zeros(4, 2)).equal(acts[2:])


@pytest.mark.parametrize("method", METHODS)
def test_kl_against_the_naive_loss(method: str, tmp_path: Path) -> None:
    sae, x = sae_of(tmp_path, f"method={method}").double(), batch_of(64).double()
    head = torch.randn(D_IN, 5, generator=torch.Generator().manual_seed(2)).double()

    def divergence(recon: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(
            (recon @ head).log_softmax(1),
            (x @ head).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )

    _, loss = KL(D_IN, D_SAE, tokens=1, lr=1.0)(sae.train(), x, NONE_DEAD, divergence)
    loss.backward()
    found = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.zero_grad()
    step = sae(x, NONE_DEAD)
    error, clean = ((x - step.recon) ** 2).sum(1).mean(), (x @ head).softmax(1)
    kl = (clean * (clean.log() - (step.recon @ head).softmax(1).log())).sum(1).mean()
    naive = 0.5 * error + 0.5 * (error / kl).item() * kl + sae.penalty(step)
    naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
    assert found.keys() == {name for name, p in sae.named_parameters() if p.grad is not None}
    for name, parameter in sae.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-10)


# --- A whole run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(path.stem, marks=[] if path.stem == "gated" else pytest.mark.slow)
        for path in sorted((CONF / "architecture").iterdir())
    ],
)
def test_every_phase_ends_every_method(architecture: str, tmp_path: Path) -> None:
    chosen = [f"architecture={architecture}", "allocator=none", "aux_loss=none"]
    base = small_run(tmp_path, *chosen)
    tuned = [small_run(tmp_path, *chosen, f"fine_tune={phase}", *LENGTH) for phase in PHASES]
    first, *others = train(base, *tuned)
    assert isinstance(first, Result), first
    before = load_file(base.folder / "checkpoint/weights.safetensors")
    for phase, run, outcome in zip(PHASES, tuned, others, strict=True):
        assert isinstance(outcome, Result), outcome
        assert outcome.tokens == run_tokens(run.folder)[-1] == first.tokens + 1024
        after = load_file(run.folder / "checkpoint/weights.safetensors")
        changed = {name for name in before if not before[name].equal(after[name])}
        if phase == "scale":
            assert changed == {"W_dec"}
        else:
            assert {"W_enc", "W_dec", "b_dec"} <= changed


def run_tokens(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["tokens"] for line in lines]


@pytest.mark.parametrize("phase", [pytest.param("scale", marks=pytest.mark.slow), "kl"])
def test_a_tuned_run_is_the_same_alone(phase: str, tmp_path: Path) -> None:
    chosen = ["method=mutual_choice", f"fine_tune={phase}", "fine_tune.tokens=1024"]
    alone, packed = small_run(tmp_path / "a", *chosen), small_run(tmp_path / "b", *chosen)
    train(alone)
    train(small_run(tmp_path / "b", "method=topk", "training.tokens=2048"), packed)
    ours, theirs = (
        load_file(run.folder / "checkpoint/weights.safetensors") for run in (alone, packed)
    )
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_kl_keeps_unit_norm_and_the_budget(tmp_path: Path) -> None:
    run = small_run(tmp_path, "method=topk", "fine_tune=kl", "fine_tune.tokens=2048")
    [outcome] = train(run)
    assert isinstance(outcome, Result), outcome
    weights = load_file(run.folder / "checkpoint/weights.safetensors")
    torch.testing.assert_close(weights["W_dec"].norm(dim=1), torch.ones(D_SAE))
    assert outcome.metrics["l0"] <= 4


def test_kl_needs_a_model(tmp_path: Path) -> None:
    np.save(tmp_path / "acts.npy", batch_of(12_000).numpy())
    path = f"target_model.path={tmp_path / 'acts.npy'}"
    run = small_run(tmp_path, "target_model=activations", path, "fine_tune=kl", *LENGTH)
    with pytest.raises(ConfigError, match="fine_tune needs a target model"):
        train(run)
    assert not run.folder.exists()


def test_scale_leaves_what_the_allocator_ranks(tmp_path: Path) -> None:
    chosen = ["architecture=relu_april", "allocator=mutual_choice", "fine_tune=scale", *LENGTH]
    run = small_run(tmp_path, *chosen)
    with pytest.raises(ConfigError, match="unit_norm=true"):
        train(run)
    assert not run.folder.exists()
    [outcome] = train(small_run(tmp_path, *chosen, "architecture.unit_norm=true"))
    assert isinstance(outcome, Result), outcome


def test_only_what_trains_the_sae_updates_its_state(tmp_path: Path) -> None:
    sae = sae_of(tmp_path, "method=mutual_choice")

    sae.observe = observe = Mock()
    step = sae(batch_of(16), NONE_DEAD)
    Scale(D_IN, D_SAE, tokens=1, lr=1.0).observe(sae, step, Progress(1, 1, 0.0))
    observe.assert_not_called()
    KL(D_IN, D_SAE, tokens=1, lr=1.0).observe(sae, step, Progress(1, 1, 0.0))
    observe.assert_called_once()
