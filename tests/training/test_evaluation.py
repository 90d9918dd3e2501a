"""One training step written out; evaluation against naive figures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae_sweeps.allocator.feature_choice import FeatureChoice
from sae_sweeps.allocator.mutual_choice import MutualChoice
from sae_sweeps.allocator.none import NoAllocator
from sae_sweeps.allocator.token_choice import TokenChoice
from sae_sweeps.architecture.gated import Gated
from sae_sweeps.architecture.jumprelu import JumpReLU
from sae_sweeps.architecture.relu import ReLU
from sae_sweeps.aux_loss.aux_k import AuxK
from sae_sweeps.aux_loss.none import NoAux
from sae_sweeps.config import options
from sae_sweeps.engine.acts import Selection
from sae_sweeps.interfaces import (
    Allocator,
    Architecture,
    AuxLoss,
    Progress,
    SAELensWeights,
    Splice,
    SplicedLosses,
    Step,
    TargetModel,
)
from sae_sweeps.record.plan import Point, make_plan
from sae_sweeps.record.result import METRICS_VERSION, Result
from sae_sweeps.resampling.none import NoResampling
from sae_sweeps.schedule.linear import Linear
from sae_sweeps.training.evaluation import evaluate, measure
from sae_sweeps.training.trainer import Trainer
from tests.support.small import PLAIN_L1, pre_acts_of, small_run
from tests.support.small import trainer_of as small_trainer
from tests.support.streams import Alone

torch.set_num_threads(1)

D_IN, D_SAE, BATCH, VOCAB, SEQ = 4, 12, 16, 7, 6


def training(**changed: Any) -> options.TrainingOptions:
    given: dict[str, Any] = {
        "tokens": 20 * BATCH,
        "gradient_clip_norm": 1.0,
        "dead_window_tokens": 10**6,
        "log_every_tokens": BATCH,
        "precision": "float32",
    }
    return options.TrainingOptions(**given | changed)


def relu(allocator: Allocator, l1_coef: float | Literal["auto"] = "auto") -> Architecture:
    return ReLU(
        D_IN,
        D_SAE,
        allocator,
        encoder_scale=0.6,
        l1_coef=l1_coef,
        target_l0=3.0,
        unit_norm=True,
        **PLAIN_L1,
    )


def jumprelu(allocator: Allocator) -> Architecture:
    return JumpReLU(
        D_IN,
        D_SAE,
        allocator,
        encoder_scale=0.6,
        l0_penalty="quadratic",
        l0_coef="auto",
        target_l0=3.0,
        coef_warmup_tokens=0,
        bandwidth=0.2,
        initial_threshold=0.2,
        threshold_lr_factor=5.0,
    )


def feature(mutual_tokens: int) -> FeatureChoice:
    return FeatureChoice(
        D_SAE,
        k=2.5,
        exponent=1.0,
        shift=4.0,
        mutual_tokens=mutual_tokens,
        horizon_tokens=5 * BATCH,
        rounding="largest_remainder",
        seed=0,
    )


METHODS: dict[str, Callable[[], tuple[Architecture, AuxLoss]]] = {
    "relu": lambda: (relu(NoAllocator(D_SAE)), NoAux(D_IN, D_SAE)),
    "gated": lambda: (
        Gated(
            D_IN,
            D_SAE,
            NoAllocator(D_SAE),
            encoder_scale=0.6,
            l1_coef="auto",
            target_l0=3.0,
            **PLAIN_L1,
        ),
        NoAux(D_IN, D_SAE),
    ),
    "jumprelu": lambda: (jumprelu(NoAllocator(D_SAE)), NoAux(D_IN, D_SAE)),
    "topk": lambda: (relu(TokenChoice(D_SAE, k=2)), AuxK(D_IN, D_SAE, coef=0.1, k_aux=None)),
    "mutual_choice": lambda: (
        relu(MutualChoice(D_SAE, k=2.5, horizon_tokens=5 * BATCH)),
        AuxK(D_IN, D_SAE, coef=0.1, k_aux=None),
    ),
    "feature_choice": lambda: (relu(feature(4 * BATCH)), AuxK(D_IN, D_SAE, coef=0.1, k_aux=None)),
}
every_method = pytest.mark.parametrize("method", METHODS)


def batch_of(seed: int, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(700 + seed)
    x = torch.randn(batch, D_IN, generator=generator) + torch.linspace(-1, 2, D_IN)
    return x / 3


def trainer_of(method: str, seed: int = 0, lr: float = 0.01, **changed: Any) -> Trainer:
    sae, aux_loss = METHODS[method]()
    sae.initialise(torch.Generator().manual_seed(seed), torch.linspace(-1, 2, D_IN) / 3)
    given = training(**changed)
    return small_trainer(sae, aux_loss, NoResampling(D_IN, D_SAE), given, adam={"lr": lr})


# ---------------------------------------------------------------- the step


def written_out(
    p: dict[str, Tensor],
    xs: list[Tensor],
    l1: float,
    clip: float,
    lr: float,
    beta1: float,
    beta2: float,
) -> None:
    """Steps of an L1 ReLU SAE, in place: projection, clipping, Adam, renormalisation."""
    m = {name: torch.zeros_like(t) for name, t in p.items()}
    v = {name: torch.zeros_like(t) for name, t in p.items()}
    for number, x in enumerate(xs, start=1):
        q = {name: t.clone().requires_grad_() for name, t in p.items()}
        f = ((x - q["b_dec"]) @ q["W_enc"] + q["b_enc"]).clamp(min=0)
        loss = (x - f @ q["W_dec"] - q["b_dec"]).pow(2).sum(1).mean() + l1 * f.sum(1).mean()
        g = dict(zip(q, torch.autograd.grad(loss, list(q.values())), strict=True))
        for row, direction in zip(g["W_dec"], p["W_dec"], strict=True):
            row -= (row @ direction) * direction
        norm = math.sqrt(sum(t.pow(2).sum().item() for t in g.values()))
        for name, t in p.items():
            clipped = g[name] * min(1.0, clip / norm)
            m[name] = beta1 * m[name] + (1 - beta1) * clipped
            v[name] = beta2 * v[name] + (1 - beta2) * clipped**2
            first, second = m[name] / (1 - beta1**number), v[name] / (1 - beta2**number)
            t -= lr * first / (second.sqrt() + 1e-8)
        p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)


@pytest.mark.parametrize("clip", [0.1, 1e6])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9)])
def test_steps_are_those_written_out(clip: float, betas: tuple[float, float]) -> None:
    adam = {"lr": 0.01, "beta1": betas[0], "beta2": betas[1]}
    sae = relu(NoAllocator(D_SAE), l1_coef=0.25)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(D_IN))
    parts = sae.double(), NoAux(D_IN, D_SAE), NoResampling(D_IN, D_SAE)
    trainer = small_trainer(*parts, training(gradient_clip_norm=clip), adam=adam)
    p = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    xs = [batch_of(index).double() for index in range(4)]
    written_out(p, xs, 0.25, clip, **adam)
    for x in xs:
        trainer.step(x, wanted=False)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.detach(), p[name], rtol=1e-4, atol=1e-6)


def test_figures_of_a_step() -> None:
    trainer, x = trainer_of("topk", dead_window_tokens=BATCH), batch_of(0)
    trainer.tokens_since_fired[[1, 5]] = BATCH
    before = {
        name: parameter.detach().clone() for name, parameter in trainer.sae.named_parameters()
    }
    assert trainer.step(batch_of(9), wanted=False) == {}
    trainer = trainer_of("topk", dead_window_tokens=BATCH)
    trainer.tokens_since_fired[[1, 5]] = BATCH
    figures = {name: value.item() for name, value in trainer.step(x, wanted=True).items()}
    u = (x - before["b_dec"]) @ before["W_enc"] + before["b_enc"]
    top = u.topk(2, dim=1)
    f = torch.zeros_like(u).scatter(1, top.indices, top.values.relu())
    residual = x - f @ before["W_dec"] - before["b_dec"]
    error = residual.pow(2).sum().item()
    e_hat = u[:, [1, 5]].relu() @ before["W_dec"][[1, 5]]
    aux = 0.1 * ((residual - e_hat) ** 2).sum() / ((residual - residual.mean(0)) ** 2).sum()
    assert figures["train/fvu"] == pytest.approx(
        error / (x - x.mean(0)).pow(2).sum().item(), rel=1e-4
    )
    assert figures["train/l0"] == pytest.approx((f > 0).sum().item() / BATCH)
    assert figures["train/aux_loss"] == pytest.approx(aux.item(), rel=1e-4)
    assert figures["train/penalty"] == 0
    assert figures["train/loss"] == pytest.approx(error / BATCH + aux.item(), rel=1e-4)
    assert figures["train/lr"] == pytest.approx(0.01)
    dead = ((f > 0).sum(0) == 0).float().mean().item()  # the window is one batch long
    assert figures["features/dead_frac"] == pytest.approx(dead)


@every_method
def test_decoder_rows_keep_unit_norm(method: str) -> None:
    trainer = trainer_of(method, lr=0.1)
    for index in range(20):
        trainer.step(batch_of(index), wanted=False)
        torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_thresholds_learn_at_their_own_rate() -> None:
    trainer = trainer_of("jumprelu", gradient_clip_norm=1e6)
    log_threshold = trainer.sae.get_parameter("log_threshold")
    b_enc = trainer.sae.get_parameter("b_enc")
    old = log_threshold.detach().clone(), b_enc.detach().clone()
    trainer.step(batch_of(0, 256), wanted=False)
    moved = (log_threshold - old[0]).abs().max().item(), (b_enc - old[1]).abs().max().item()
    assert moved == pytest.approx(
        (0.05, 0.01), rel=1e-2
    )  # Adam's first step has the learning rate's length


@every_method
def test_a_seed_gives_the_same_losses_and_another_seed_others(method: str) -> None:
    def losses(seed: int) -> list[float]:
        trainer = trainer_of(method, seed, dead_window_tokens=2 * BATCH)
        return [trainer.step(batch_of(i), wanted=True)["train/loss"].item() for i in range(10)]

    first = losses(0)
    assert first == losses(0)
    assert first != losses(1)
    assert first[-1] < 2 * first[0]


@every_method
def test_asking_for_figures_changes_nothing(method: str) -> None:
    one, other = trainer_of(method), trainer_of(method)
    for index in range(6):
        one.step(batch_of(index), wanted=True)
        other.step(batch_of(index), wanted=False)
    for name, tensor in one.sae.state_dict().items():
        assert torch.equal(tensor, other.sae.state_dict()[name]), name


@every_method
@pytest.mark.parametrize("batch", [1, 3])
def test_tiny_batches_train(method: str, batch: int) -> None:
    """With latents dead at once, so that the auxiliary loss takes part from the second step on."""
    trainer = trainer_of(method, dead_window_tokens=1)
    for index in range(6):
        figures = trainer.step(batch_of(index, batch), wanted=True)
        assert figures["train/loss"].isfinite()
    for name, tensor in trainer.sae.named_parameters():
        assert tensor.isfinite().all(), name


def test_silence_is_counted_in_tokens() -> None:
    trainer = trainer_of("topk", dead_window_tokens=40)
    trainer.sae.get_parameter("b_enc").data[3] = -100.0
    silent = torch.zeros(D_SAE, dtype=torch.int64)
    for index, batch in enumerate((16, 5, 16, 1, 16, 16)):
        x = batch_of(index, batch)
        acts = trainer.sae(x, trainer.dead).acts.dense()
        trainer.step(x, wanted=False)
        silent = torch.where((acts > 0).any(0), 0, silent + batch)
        assert torch.equal(trainer.tokens_since_fired, silent)
        assert torch.equal(trainer.dead, silent >= 40)
    assert trainer.tokens == 70
    assert trainer.dead.any() and not trainer.dead.all()


def test_the_step_learns_which_latents_were_dead_before_it() -> None:
    trainer = trainer_of("topk", dead_window_tokens=BATCH)
    trainer.sae.get_parameter("b_enc").data[3] = -100.0
    assert not trainer.dead.any()
    assert trainer.step(batch_of(0), wanted=True)["train/aux_loss"] == 0
    assert trainer.dead[3]
    assert trainer.step(batch_of(1), wanted=True)["train/aux_loss"] > 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.25), (100, 0.5), (300, 1.0), (400, 1.0), (500, 1.0), (600, 0.8), (800, 0.4), (900, 0.2)],
)
def test_learning_rate(tokens: int, expected: float) -> None:
    schedule = Linear(1000, warmup_tokens=400, decay_tokens=500)
    assert schedule.factor(tokens, 100) == pytest.approx(expected)


def test_learning_rate_is_constant_without_warmup_and_decay() -> None:
    schedule = Linear(1000, warmup_tokens=0, decay_tokens=0)
    assert {schedule.factor(tokens, 100) for tokens in range(0, 1000, 100)} == {1.0}


def test_learning_rate_is_always_positive() -> None:
    for batch in (1, 7, 64):
        schedule = Linear(1000, warmup_tokens=300, decay_tokens=700)
        steps = [schedule.factor(tokens, batch) for tokens in range(0, 1000 - batch + 1, batch)]
        assert min(steps) > 0 and max(steps) <= 1


# ---------------------------------------------------------------- evaluation


@final
class Table(TargetModel):
    """A model of one layer: activations are a table's rows, the head is linear."""

    d_in = D_IN
    tokens_per_row = SEQ
    device = torch.device("cpu")

    def __init__(self, rows: int, has_loss: bool = True) -> None:
        self.has_loss = has_loss
        self.description = {"model_name": "table"}
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(rows, SEQ, D_IN, generator=generator) * 3 + 2
        self.head = torch.randn(D_IN, VOCAB, generator=generator)
        self.targets = (self.table @ self.head).argmax(-1)

    def row_count(self, split: str) -> int:
        return len(self.table)

    def activations(self, split: str, rows: Tensor) -> Tensor:
        return self.table[rows].flatten(0, 1)

    def spliced_losses(self, split: str, rows: Tensor, splice: Splice) -> SplicedLosses:
        logits = splice(self.table[rows]) @ self.head
        ce = F.cross_entropy(logits.transpose(1, 2), self.targets[rows], reduction="none")
        clean, spliced = (self.table[rows] @ self.head).log_softmax(-1), logits.log_softmax(-1)
        return SplicedLosses(ce, (clean.exp() * (clean - spliced)).sum(-1))


@final
class Fixed(Architecture):
    """Reconstructs by a given function; latent 0 is always active, latent 1 never."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(torch.zeros(2, D_IN))
        self.allocator = NoAllocator(2)
        self.function = function

    def forward(self, x: Tensor, dead: Tensor) -> Step:
        values = torch.tensor([1.0, 0.0]).expand(len(x), 2)
        selection = Selection(None)
        acts, recon = selection.of(values), self.function(x)
        return Step(x, pre_acts_of(values), selection, acts, acts, recon, self.W_dec, dead, False)

    def initialise(self, generator: torch.Generator, mean: Tensor) -> None:
        raise NotImplementedError

    def penalty(self, step: Step) -> Tensor:
        raise NotImplementedError

    def observe(self, step: Step, progress: Progress) -> None:
        raise NotImplementedError

    def diagnostics(self) -> dict[str, float]:
        raise NotImplementedError

    def rescale(self, factor: float) -> None:
        raise NotImplementedError

    def saelens(self) -> SAELensWeights | None:
        raise NotImplementedError


def stream_of(rows: int = 30, has_loss: bool = True, centre: bool = False) -> Alone:
    given = options.StreamOptions(
        batch_tokens=BATCH,
        chunk_tokens=4 * BATCH,
        seed=0,
        repeat=False,
        calibration_tokens=60,
        centre=centre,
        special_tokens=False,
        skip_first=0,
        max_norm=None,
    )
    return Alone(Table(rows, has_loss), given, GIVEN.tokens)


GIVEN = options.EvaluationOptions(tokens=150, ce_tokens=60)
ZERO = torch.zeros(D_IN)


def test_the_identity_recovers_everything() -> None:
    found = evaluate(Fixed(lambda x: x), stream_of(), GIVEN).metrics
    assert found["fvu"] == 0 and found["mse"] == 0
    assert found["ce"] == pytest.approx(found["ce_clean"], rel=1e-5)
    assert found["delta_ce"] == pytest.approx(0, abs=1e-5)
    assert found["ce_recovered"] == pytest.approx(1, abs=1e-5)
    assert found["ce_recovered_mean"] == pytest.approx(1, abs=1e-5)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["cosine"] == pytest.approx(1)
    assert found["gamma"] == pytest.approx(1) and found["gamma_centred"] == pytest.approx(1)
    assert (found["l0"], found["dead_frac"]) == (1, 0.5)


def test_zero_recovers_nothing() -> None:
    found = evaluate(Fixed(torch.zeros_like), stream_of(), GIVEN).metrics
    assert found["ce"] == pytest.approx(found["ce_zero"])
    assert found["ce_recovered"] == pytest.approx(0)
    assert found["fvu"] > 1  # the mean is not 0


def test_splicing_the_reconstruction_plus_its_error_changes_nothing() -> None:
    found = evaluate(Fixed(lambda x: 0.3 * x + (x - 0.3 * x)), stream_of(), GIVEN).metrics
    assert found["delta_ce"] == pytest.approx(0, abs=1e-5)


def test_cross_entropies_against_the_model() -> None:
    stream = stream_of()
    found = evaluate(Fixed(lambda x: 0.5 * x + 0.1), stream, GIVEN).metrics
    target = stream.target
    assert isinstance(target, Table)
    rows = stream.held_out_rows(GIVEN.ce_tokens)
    assert len(rows) == 10 and len(rows.unique()) == 10

    def ce(acts: Tensor) -> float:
        logits = (acts @ target.head).double().flatten(0, 1)
        correct = logits.log_softmax(1).gather(1, target.targets[rows].view(-1, 1))
        return -correct.mean().item()

    acts = target.table[rows]
    assert found["ce_clean"] == pytest.approx(ce(acts), rel=1e-5)
    assert found["ce_zero"] == pytest.approx(math.log(VOCAB), rel=1e-5)
    assert found["ce"] == pytest.approx(
        ce((0.5 * acts * stream.scale + 0.1) / stream.scale), rel=1e-5
    )
    calibration = target.table[stream.order.rows("train", 0, 10)].flatten(0, 1)
    mean = calibration.mean(0).expand_as(acts)
    assert found["ce_mean"] == pytest.approx(ce(mean), rel=1e-5)
    assert found["ce_mean"] != pytest.approx(found["ce_zero"], rel=1e-2)
    for name, ablated in (("ce_recovered", "ce_zero"), ("ce_recovered_mean", "ce_mean")):
        gained = found[ablated] - found["ce"]
        assert found[name] == pytest.approx(gained / (found[ablated] - found["ce_clean"])), name
    clean, spliced = (
        (a @ target.head).double().log_softmax(-1).numpy()
        for a in (acts, (0.5 * acts * stream.scale + 0.1) / stream.scale)
    )
    kl = (np.exp(clean) * (clean - spliced)).sum(-1).mean()
    other_way = (np.exp(spliced) * (spliced - clean)).sum(-1).mean()
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert abs(kl / other_way - 1) > 0.01


@pytest.mark.parametrize("centre", [False, True])
def test_gamma_is_of_the_models_own_activations(centre: bool) -> None:
    """Half the scaled input: with a centred stream that is another fraction of the model's own."""
    stream = stream_of(centre=centre)
    found = evaluate(Fixed(lambda x: 0.5 * x), stream, GIVEN)
    x = stream.held_out
    acts, recon = (stream.unscaled(part).double().numpy() for part in (x, 0.5 * x))
    gamma = (recon**2).sum() / (acts * recon).sum()
    centred = acts - acts.mean(0), recon - acts.mean(0)
    lengths = np.linalg.norm(acts, axis=1) * np.linalg.norm(recon, axis=1)
    for figures in (found.metrics, found.batch):
        assert figures["gamma"] == pytest.approx(gamma, rel=1e-5)
        expected = (centred[1] ** 2).sum() / (centred[0] * centred[1]).sum()
        assert figures["gamma_centred"] == pytest.approx(expected, rel=1e-4)
        assert figures["cosine"] == pytest.approx(((acts * recon).sum(1) / lengths).mean())
    assert (gamma == pytest.approx(0.5)) == (not centre)


def test_a_known_dictionary_is_compared_with_the_decoder() -> None:
    stream = stream_of()
    assert not [name for name in evaluate(learnt("topk"), stream, GIVEN).metrics if "true" in name]
    sae = learnt("topk")
    features = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(3))
    features[:3] = sae.W_dec.detach()[[7, 2, 9]] * 3
    stream.target.dictionary, stream.target.true_l0 = F.normalize(features), 1.5
    found = evaluate(sae, stream, GIVEN)
    decoder = F.normalize(sae.W_dec.detach())
    largest = (F.normalize(features) @ decoder.T).max(1).values
    assert found.metrics["true_l0"] == 1.5
    assert found.metrics["true_max_cos"] == pytest.approx(largest.mean().item(), rel=1e-5)
    assert found.metrics["true_recovered_frac"] >= 3 / 5
    assert 3 / 5 <= found.metrics["true_matched_cos"] <= found.metrics["true_max_cos"] + 1e-6
    assert not [name for name in found.batch if "true" in name]


def test_no_model_no_cross_entropy() -> None:
    evaluation = evaluate(Fixed(lambda x: x), stream_of(has_loss=False), GIVEN)
    assert not [name for name in evaluation.metrics if name.startswith(("ce", "delta"))]
    assert evaluation.evaluation["ce_tokens"] == 0


def learnt(method: str) -> Architecture:
    trainer = trainer_of(method)
    stream = stream_of()
    for index in range(10):
        chunk = stream.chunk(index % 2)
        trainer.step(chunk[:BATCH], wanted=False)
    return trainer.sae


@every_method
def test_batch_free_figures_against_numpy(method: str) -> None:
    sae, stream = learnt(method), stream_of()
    state = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    found = evaluate(sae, stream, GIVEN)
    assert not sae.training
    assert all(torch.equal(state[name], tensor) for name, tensor in sae.state_dict().items())
    x = stream.held_out
    with torch.no_grad():
        step = sae(x, torch.zeros(D_SAE, dtype=torch.bool))  # all tokens at once
    X, R, C = x.double().numpy(), step.recon.double().numpy(), step.acts.dense().numpy()
    fvu = ((X - R) ** 2).sum() / ((X - X.mean(0)) ** 2).sum()
    assert found.metrics["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert found.metrics["l0"] == pytest.approx((C > 0).sum(1).mean())
    assert found.metrics["dead_frac"] == pytest.approx(((C > 0).sum(0) == 0).mean())
    assert found.metrics["mse"] == pytest.approx((((X - R) / stream.scale) ** 2).mean(), rel=1e-4)
    assert sum(found.density_histogram["counts"]) == D_SAE
    by_l0 = found.l0_histogram
    assert np.histogram((C > 0).sum(1), by_l0["edges"])[0].tolist() == by_l0["counts"]
    assert np.mean([row["l0"] for row in found.fvu_by_l0_decile]) == pytest.approx(
        found.metrics["l0"]
    )
    assert 0 < found.batch["l0"] < D_SAE
    json.dumps(vars(found), allow_nan=False)


@every_method
def test_batch_free_figures_do_not_depend_on_the_batches(method: str) -> None:
    sae, x = learnt(method).eval(), stream_of().held_out
    whole = measure(sae, x, ZERO, 150)
    for size in (1, 7, 64):
        parts = measure(sae, x, ZERO, size)
        assert torch.equal(parts.l0, whole.l0) and torch.equal(parts.fired, whole.fired)
        torch.testing.assert_close(parts.error, whole.error)
        torch.testing.assert_close(vars(parts.plain), vars(whole.plain))
        torch.testing.assert_close(vars(parts.centred), vars(whole.centred))


@pytest.mark.parametrize("method", ["topk", "mutual_choice", "feature_choice"])
def test_batch_figures_allocate_over_batches_as_in_training(method: str) -> None:
    sae, stream = learnt(method), stream_of()
    x = stream.held_out
    found = evaluate(sae, stream, GIVEN).batch
    sae.train()
    parts = [sae(part, torch.zeros(D_SAE, dtype=torch.bool)) for part in x.split(BATCH)]
    recon = torch.cat([part.recon for part in parts])
    fvu = (x - recon).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert found["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    l0 = sum(part.acts.l0_per_token().sum().item() for part in parts) / len(x)
    assert found["l0"] == pytest.approx(l0)
    assert l0 <= 2.5 + 1e-6


def test_a_last_batch_too_small_for_any_budget_is_evaluated() -> None:
    """evaluation.tokens need not be a multiple of stream.batch_tokens; k may be below 1."""
    allocator = FeatureChoice(
        D_SAE,
        k=0.4,
        exponent=0.0,
        shift=1.0,
        mutual_tokens=0,
        horizon_tokens=5 * BATCH,
        rounding="largest_remainder",
        seed=0,
    )
    sae = relu(allocator).train()
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(D_IN))
    assert measure(sae, batch_of(0, BATCH + 1), ZERO, BATCH).l0[-1] == 0


# ---------------------------------------------------------------- measured by older metrics


@pytest.mark.parametrize(
    ("evaluation", "anew"),
    [
        ({"metrics_version": METRICS_VERSION}, False),
        ({"metrics_version": METRICS_VERSION - 1}, True),
        ({"metrics_version": METRICS_VERSION + 1}, True),
        ({}, True),
    ],
)
def test_runs_that_other_metrics_measured_are_measured_anew(
    tmp_path: Path, evaluation: dict[str, Any], anew: bool
) -> None:
    made = small_run(tmp_path)
    point = Point([], made.config, made.choices)
    [run] = make_plan("small", tmp_path, [point]).runs
    result = Result(
        label=run.label,
        choices=run.choices,
        config=run.config,
        tokens=0,
        metrics={},
        evaluation=evaluation,
    )
    run.files.finish(result)
    plan = make_plan("small", tmp_path, [point])
    assert plan.packs == []
    assert [r.name for group in plan.remeasured for r in group] == ([run.name] if anew else [])
    assert list(plan.finished) == ([] if anew else [run.name])


def test_what_evaluation_writes_counts_as_measured_today() -> None:
    written = evaluate(Fixed(lambda x: x), stream_of(), GIVEN)
    assert written.evaluation["metrics_version"] == METRICS_VERSION
