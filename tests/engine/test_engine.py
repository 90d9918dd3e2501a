"""Sparse and dense products: one result, whatever runs inside, alone, packed and resumed."""

import copy
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import build
from sae_sweeps.engine.pre_acts import PIECE, Piece, PreActs
from sae_sweeps.interfaces import Architecture, AuxLoss, FineTune, Optimizer, Progress
from sae_sweeps.optimizer.adam import Adam
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.stream.live import Stream
from sae_sweeps.training import snapshot
from sae_sweeps.training.fine_tuner import FineTuner
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer, squared_error
from tests.support.places import CONF
from tests.support.small import small_run, train
from tests.support.unchecked import unchecked

torch.set_num_threads(1)

D_IN, BATCH = 8, 96
STRONG = {"l1_coef": 0.3, "coef_warmup_tokens": 0, "l0_coef": 0.7, "coef": 1.0, "tau": 0.8}
"""Options at which no term of the loss is small beside the others"""


def option_files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


ARCHITECTURES, ALLOCATORS = option_files("architecture"), option_files("allocator")
AUX_LOSSES, METHODS = option_files("aux_loss"), option_files("method")


def cells() -> Iterator[ParameterSet]:
    """All combinations; those that are not slow have every pair of options, as a Latin square."""
    groups = (enumerate(group) for group in (ARCHITECTURES, ALLOCATORS, AUX_LOSSES))
    for cell in product(*groups):
        fast = sum(index for index, _ in cell) % len(AUX_LOSSES) == 0
        names = [name for _, name in cell]
        yield pytest.param(*names, marks=[] if fast else pytest.mark.slow)


def batch_of(seed: int, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, D_IN, generator=generator, dtype=torch.float64) * 0.35


@cache
def node_of(group: str, option: str) -> dict[str, Any]:
    return small_run(Path(), f"{group}={option}").config.tree[group]


@cache
def common() -> dict[str, Any]:
    return small_run(Path()).config.tree


def configured(**chosen: str) -> RunConfig:
    """A config of these options, whose penalty and auxiliary loss, if it has such, are strong."""
    config = copy.deepcopy(common())
    config |= {group: copy.deepcopy(node_of(group, name)) for group, name in chosen.items()}
    for group in ("architecture", "aux_loss"):
        node = config[group]
        node |= {key: value for key, value in STRONG.items() if key in node}
    return RunConfig.of(config)


def built(config: RunConfig) -> tuple[Architecture, AuxLoss]:
    """An SAE in float64, its parameters far from their first values, and its auxiliary loss."""
    sae = new_sae(config, D_IN)
    generator = torch.Generator().manual_seed(0)
    sae.initialise(generator, torch.zeros(D_IN))
    sae.double()
    for parameter in sae.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.1 * drawn
    aux_loss: AuxLoss = build(config.nodes["aux_loss"], D_IN, config.d_sae).double()
    return sae, aux_loss


def computed(
    max_listed: float, sae: Architecture, aux_loss: AuxLoss, dead: Tensor, seed: int
) -> tuple[dict[str, Tensor], bool]:
    """The terms of the loss and its gradient in everything, and whether pairs were listed."""
    sae, aux_loss = copy.deepcopy(sae), copy.deepcopy(aux_loss)
    sae.max_listed = max_listed
    x = batch_of(seed).requires_grad_()
    step = sae(x, dead)
    terms = {"error": squared_error(step), "penalty": sae.penalty(step), "aux": aux_loss(step)}
    sum(terms.values(), torch.zeros(())).backward()
    found = {name: term.detach().double() for name, term in terms.items()}
    assert x.grad is not None
    found |= {"x": x.grad, "recon": step.recon.detach(), "acts": step.acts.dense().detach()}
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        found[f"gradient of {name}"] = parameter.grad
    return found, step.acts.pairs is not None


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To 1e-6 of each tensor's largest entry."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        tolerance = 1e-6 * max(tensor.abs().max().item(), 1e-9)
        difference = (found[name] - tensor).abs().max().item()
        assert difference <= tolerance, f"{name}: {difference}"


@contextmanager
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Generator[set[str]]:
    """Read matrices in pieces however small they are; what the pieces were of, is told."""
    seen, pieces = set[str](), PreActs.pieces

    def watched(pre_acts: PreActs, by_latent: bool = False) -> Iterator[Piece]:
        found = list(pieces(pre_acts, by_latent))
        if len(found) > 1:
            seen.add("latents" if by_latent else "tokens")
        return iter(found)

    with monkeypatch.context() as patch:
        patch.setattr("sae_sweeps.engine.pre_acts.PIECE", 1024)
        patch.setattr("sae_sweeps.engine.pre_acts.TOKENS", 8)
        patch.setattr(PreActs, "pieces", watched)
        yield seen


# ---------------------------------------------------------------- one result


@pytest.mark.parametrize(("architecture", "allocator", "aux_loss"), list(cells()))
def test_loss_and_gradients_are_the_same_sparse_in_pieces_and_dense(
    architecture: str, allocator: str, aux_loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, aux = built(configured(architecture=architecture, allocator=allocator, aux_loss=aux_loss))
    dead, kinds = torch.arange(len(sae.W_dec)) % 5 == 2, set[str]()
    # At first, and after a step that ends mutual choice's part and begins to anneal penalties.
    for tokens in (0, 1600):
        if tokens:
            with torch.no_grad():
                step, progress = sae(batch_of(0), dead), Progress(tokens, 4096, 1e-3)
                sae.observe(step, progress)
                aux.observe(step, progress)
        dense, listed = computed(0.0, sae, aux, dead, seed=tokens)
        assert not listed
        sparse, listed = computed(1.0, sae, aux, dead, seed=tokens)
        assert listed
        assert_close(sparse, dense)
        with small_pieces(monkeypatch) as seen:
            parts, listed = computed(1.0, sae, aux, dead, seed=tokens)
        assert listed and seen
        assert_close(parts, dense)
        kinds |= seen
        assert dense["aux"] > 0 or aux_loss == "none"
        assert dense["penalty"] > 0
        for name in ("gradient of W_enc", "gradient of W_dec", "gradient of b_dec", "x"):
            assert dense[name].any(), name
    ranks_latents = "feature" in allocator or "jumprelu" in architecture
    assert ("latents" in kinds) == ranks_latents and ("tokens" in kinds or ranks_latents)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("allocator", ["none", "token_choice", "mutual_choice"])
@pytest.mark.parametrize("max_listed", [0.0, 1.0])
def test_the_gradient_in_the_input_is_the_slope(
    architecture: str, allocator: str, max_listed: float
) -> None:
    """Of error and penalty, in a direction drawn at random, by finite differences."""
    sae, _ = built(configured(architecture=architecture, allocator=allocator))
    sae.max_listed = max_listed
    dead = torch.zeros(len(sae.W_dec), dtype=torch.bool)

    def loss(x: Tensor) -> Tensor:
        step = sae(x, dead)
        return squared_error(step) + sae.penalty(step)

    x, direction = batch_of(1).requires_grad_(), batch_of(2)
    loss(x).backward()
    assert x.grad is not None
    with torch.no_grad():
        slope = (loss(x + 1e-7 * direction) - loss(x - 1e-7 * direction)).item() / 2e-7
    assert (x.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_evaluation_is_the_same_sparse_in_pieces_and_dense(
    architecture: str, allocator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, _ = built(configured(architecture=architecture, allocator=allocator))
    dead = torch.zeros(len(sae.W_dec), dtype=torch.bool)
    with torch.no_grad():
        for seed in range(2):  # the second follows the end of mutual choice's part
            sae.observe(sae(batch_of(seed), dead), Progress(800 * (seed + 1), 4096, 1e-3))
        sae.eval()
        found = list[dict[str, Tensor]]()
        for max_listed in (0.0, 1.0):
            sae.max_listed = max_listed
            step = sae(batch_of(9), dead)
            found.append({"acts": step.acts.dense(), "recon": step.recon})
        with small_pieces(monkeypatch) as seen:
            step = sae(batch_of(9), dead)
        assert seen
        in_pieces = {"acts": step.acts.dense(), "recon": step.recon}
    assert_close(*found)
    assert_close(in_pieces, found[0])
    assert found[0]["acts"].any()


# ---------------------------------------------------------------- whole runs


def runs_of_all_methods(folder: Path, *also: str) -> list[Run]:
    """Each in a folder of its own, since the method `none` may be another's by name."""
    return [small_run(folder / method, f"method={method}", *also) for method in METHODS]


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "checkpoint" / "weights.safetensors")


BATCH_OF_RUNS = 128
LONG = [f"stream.batch_tokens={BATCH_OF_RUNS}", "evaluation.tokens=1024", "evaluation.ce_tokens=0"]
MADE = "target_model=synthetic", "target_model.d_in=32"  # no model to load for each run
BUDGETS = "stream.batch_tokens=512"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "steps", "piece"),
    [
        ("auto", 100, PIECE),  # from dense to sparse where a penalty rules
        ("dense", 20, PIECE),
        ("sparse", 20, 1024),
    ],
)
def test_steps_are_the_same_bit_for_bit_alone_and_packed(
    engine: str, steps: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed, two runs train at a time and lend each other memory, which alone they do not."""
    monkeypatch.setattr("sae_sweeps.engine.pre_acts.PIECE", piece)
    monkeypatch.setattr("sae_sweeps.engine.pre_acts.TOKENS", 8)
    tokens = steps * BATCH_OF_RUNS
    also = [*LONG, *MADE, f"training.tokens={tokens}", f"engine={engine}", "optimizer.lr=3e-3"]

    def two(*_: object) -> int:
        return 2

    packed = runs_of_all_methods(tmp_path / "packed", *also)
    with monkeypatch.context() as patch, unchecked():
        patch.setattr("sae_sweeps.training.pack.workers", two)
        patch.setattr("sae_sweeps.engine.gemm.LENT_FROM", 1)
        assert all(isinstance(outcome, Result) for outcome in train(*packed))
    paths = [set(paths_logged(run)) for run in packed]
    assert ({0.0, 1.0} in paths) == (engine == "auto")
    for run, alone in zip(packed, runs_of_all_methods(tmp_path / "alone", *also), strict=True):
        with unchecked():
            [outcome] = train(alone)
        assert isinstance(outcome, Result) and outcome.tokens == tokens
        ours, theirs = weights(run), weights(alone)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.equal(theirs[name]), f"{run.label}: {name}"


def paths_logged(run: Run) -> list[float]:
    """Whether products were sparse, at each step logged."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["perf/sparse"] for line in lines]


@pytest.mark.slow
def test_a_run_logs_which_path_its_steps_took(tmp_path: Path) -> None:
    # A penalty starts with half of all latents active, a budget has k of them from the beginning.
    also = [BUDGETS, "training.tokens=51200", "training.log_every_tokens=512", "k=2"]
    relu, topk = (
        small_run(tmp_path, f"method={method}", *also, "evaluation.ce_tokens=0")
        for method in ("relu", "topk")
    )
    with unchecked():
        train(relu, topk)
    assert set(paths_logged(topk)) == {1.0}
    paths = paths_logged(relu)
    assert paths[0] == 0.0 and paths[-1] == 1.0 and paths == sorted(paths)


@pytest.mark.slow
def test_the_engines_reconstruct_equally_well(tmp_path: Path) -> None:
    also = ["training.tokens=51200", BUDGETS, "evaluation.ce_tokens=0"]
    engines = ("dense", "sparse")
    runs = [runs_of_all_methods(tmp_path / e, f"engine={e}", *also) for e in engines]
    with unchecked():
        outcomes = train(*runs[0], *runs[1])
    by_method = [dict(zip(METHODS, some, strict=True)) for some in runs]
    for method, dense, sparse in zip(
        METHODS, outcomes[: len(METHODS)], outcomes[len(METHODS) :], strict=True
    ):
        assert isinstance(dense, Result) and isinstance(sparse, Result), (method, dense, sparse)
        assert (dense.cost["sparse_up_to"], sparse.cost["sparse_up_to"]) == (0.0, 1.0)
        paths = [set(paths_logged(run)) for run in (named[method] for named in by_method)]
        assert paths == [{0.0}, {1.0}], method
        one, other = (outcome.metrics["fvu"] for outcome in (dense, sparse))
        assert 0 < one < 1 and other == pytest.approx(one, rel=5e-3), method


# ---------------------------------------------------------------- layout in memory


def started(config: RunConfig, fine_tune: str) -> tuple[Trainer, FineTuner]:
    """A run as it is built, without a target model."""
    sizes = D_IN, config.d_sae
    sae = new_sae(config, D_IN)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(D_IN))
    trainer = new_trainer(config, sae)
    phase: FineTune = build(node_of("fine_tune", fine_tune), *sizes)
    return trainer, FineTuner(trainer, phase, object.__new__(Stream))


def laid_out_like_their_parameter(optimizer: Optimizer) -> int:
    """Check gradients and moments of all parameters; the number of moments."""
    assert isinstance(optimizer, Adam)
    moments = 0
    for parameter in optimizer.trained:
        if parameter.grad is not None:
            assert parameter.grad.stride() == parameter.stride()
        for moment in optimizer.moments(parameter):
            assert moment.shape == parameter.shape
            assert moment.stride() == parameter.stride(), tuple(parameter.shape)
            moments += 1
    return moments


def steps(trainer: Trainer, first: int, count: int) -> None:
    for seed in range(first, first + count):
        trainer.step(batch_of(seed, 512).float(), wanted=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_restored_state_goes_on_bit_for_bit(
    architecture: str, engine: str, tmp_path: Path
) -> None:
    """Fused Adam is wrong, without a word, where moments lie otherwise than what it is given."""
    config = replace(configured(architecture=architecture), engine=engine)
    trainer, fine_tuner = started(config, "none")
    steps(trainer, 0, 3)
    parameters = len(list(trainer.sae.parameters()))
    assert laid_out_like_their_parameter(trainer.optimizer) == 2 * parameters
    trainer.tokens_since_fired[0] = 3 * 512  # as of a latent that has never fired
    tensors, numbers = snapshot.take(trainer, fine_tuner)
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "state")
    again, its_tuner = started(config, "none")
    layout = {name: p.stride() for name, p in again.sae.named_parameters()}
    snapshot.restore(again, its_tuner, load_file(tmp_path / "state"), numbers)
    taken, its_numbers = snapshot.take(again, its_tuner)
    assert its_numbers == numbers and taken.keys() == tensors.keys()
    assert [name for name, tensor in tensors.items() if not taken[name].equal(tensor)] == []
    assert {name: p.stride() for name, p in again.sae.named_parameters()} == layout
    assert laid_out_like_their_parameter(again.optimizer) == 2 * parameters
    for one in (trainer, again):
        steps(one, 3, 2)
        assert laid_out_like_their_parameter(one.optimizer) == 2 * parameters
    for (name, one), other in zip(
        trainer.sae.named_parameters(), again.sae.parameters(), strict=True
    ):
        assert one.equal(other), name


@pytest.mark.parametrize("fine_tune", option_files("fine_tune"))
def test_the_last_phase_too_is_restored_as_it_lay(fine_tune: str, tmp_path: Path) -> None:
    config = configured()
    trainer, fine_tuner = started(config, fine_tune)
    again, its_tuner = started(config, fine_tune)
    steps(trainer, 0, 1)
    generator = torch.Generator().manual_seed(0)
    trained = fine_tuner.optimizer.trained
    gradients = [torch.randn(p.shape, generator=generator) for p in trained]

    def update(tuner: FineTuner) -> list[nn.Parameter]:
        for parameter, gradient in zip(tuner.optimizer.trained, gradients, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        tuner.optimizer.update(1e-3)
        return tuner.optimizer.trained

    update(fine_tuner)
    tensors, numbers = snapshot.take(trainer, fine_tuner)
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "state")
    snapshot.restore(again, its_tuner, load_file(tmp_path / "state"), numbers)
    assert laid_out_like_their_parameter(its_tuner.optimizer) > 0
    for one, other in zip(update(fine_tuner), update(its_tuner), strict=True):
        assert one.equal(other)


def test_adam_is_the_same_however_a_matrix_lies() -> None:
    """Against PyTorch's plain loop over parameters that lie row by row; one of them is square."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*shape, generator=generator) for shape in ((7, 5), (6, 6), (9,))]
    plain = [nn.Parameter(value.clone()) for value in values]
    lying = [nn.Parameter(v.T.contiguous().T if v.ndim == 2 else v.clone()) for v in values]
    factors = [1.0, 2.0, 3.0]
    groups = [
        {"params": [p], "lr": 1e-2 * factor} for p, factor in zip(plain, factors, strict=True)
    ]
    reference = torch.optim.Adam(groups, betas=(0.8, 0.99), foreach=False)
    ours = Adam(lying, factors, lr=1e-2, beta1=0.8, beta2=0.99)
    for _ in range(5):
        for one, other in zip(plain, lying, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()  # row by row, whatever the parameter does
        reference.step()
        ours.update(1e-2)
        assert all(one.allclose(other) for one, other in zip(plain, lying, strict=True))
    ours.zero_grad()
    assert all(parameter.grad is None for parameter in lying)
    reference.zero_grad()
    ours.update(1e-2)  # without gradients nothing moves
    assert all(one.allclose(other) for one, other in zip(plain, lying, strict=True))
