"""Interrupted runs go on where their last checkpoint was, to the same weights and rows."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_sweeps.record import checkpoint
from sae_sweeps.record.checkpoint import Checkpoint, latest, save
from sae_sweeps.record.folder import RunFolder
from sae_sweeps.record.identity import identity
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.system.files import digest
from tests.support.interrupting import OFTEN, Interrupted, Interrupting
from tests.support.small import small_run, train, train_pack

PACK = {
    "topk": ["method=topk"],
    "mutual_choice + aux_zipf": ["method=mutual_choice", "aux_loss=aux_zipf"],
    "feature_choice, drawn": ["method=feature_choice", "allocator.rounding=stochastic"],
    "gated + neuron_resampling": ["method=gated", "resampling=neuron_resampling"],
    "jumprelu_l0": ["architecture=jumprelu_l0", "allocator=none", "aux_loss=none"],
    "relu_p_anneal": ["architecture=relu_p_anneal", "allocator=none", "aux_loss=none"],
    "relu_april": ["architecture=relu_april", "allocator=none", "aux_loss=none"],
    "matryoshka": ["architecture=matryoshka"],
    "relu + scale": ["method=relu", "fine_tune=scale", "fine_tune.tokens=2048"],
    "topk + kl": ["method=topk", "fine_tune=kl", "fine_tune.tokens=1024"],
    "short": ["method=topk", "training.tokens=2048"],
}
MEASURED = "evaluation.tokens=512", "evaluation.ce_tokens=127"
"""Figures of little, which differ as soon as weights do."""


def pack(folder: Path, *also: str) -> list[Run]:
    return [small_run(folder, *overrides, *MEASURED, *also) for overrides in PACK.values()]


def left_behind(run: Run) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Weights, figures and rows, less what depends on the time."""
    weights = load_file(run.folder / "checkpoint" / "weights.safetensors")
    result = json.loads((run.folder / "result.json").read_text())
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["perf/tokens_per_s"]
    del result["cost"], result["config"]
    return weights, result, rows


def assert_same(run: Run, other: Run) -> None:
    (ours, result, rows), (theirs, their_result, their_rows) = map(left_behind, (run, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), f"{run.label}: {name}"
    assert rows == their_rows
    assert result == their_result
    assert list((run.folder / "checkpoint").iterdir()) == [
        run.folder / "checkpoint" / "weights.safetensors"
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    runs = pack(tmp_path_factory.mktemp("undisturbed"))
    assert all(isinstance(outcome, Result) for outcome in train(*runs))
    return runs


# One worker trains the undisturbed pack for all tests.
pytestmark = pytest.mark.xdist_group("resume")


@pytest.mark.parametrize(
    ("member", "batches"),
    [
        ("gated + neuron_resampling", 5),
        pytest.param("topk", 1, marks=pytest.mark.slow),
        pytest.param("relu + scale", 10, marks=pytest.mark.slow),
        pytest.param("topk + kl", 9, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_pack_ends_like_an_undisturbed_one(
    member: str, batches: int, undisturbed: list[Run], tmp_path: Path
) -> None:
    runs = pack(tmp_path, OFTEN)
    with pytest.raises(Interrupted):
        train_pack(runs, Interrupting(list(PACK).index(member), batches))
    assert all(isinstance(outcome, Result) for outcome in train(*runs))
    for run, other in zip(runs, undisturbed, strict=True):
        assert_same(run, other)


@pytest.mark.slow
def test_members_go_on_from_different_positions(undisturbed: list[Run], tmp_path: Path) -> None:
    """Interrupted again and again, each time another member first and further on."""
    runs = pack(tmp_path, OFTEN)
    names = list(PACK)
    for batches, name in enumerate([names[3], names[6], names[0], names[8]], start=2):
        alone = runs[names.index(name)]
        with pytest.raises(Interrupted):
            train_pack([alone], Interrupting(0, batches))
    positions = {
        (found.tokens if (found := latest(run.files, identity_of(run))) else 0) for run in runs
    }
    assert len(positions) == 5
    assert all(isinstance(outcome, Result) for outcome in train(*runs))
    for run, other in zip(runs, undisturbed, strict=True):
        assert_same(run, other)


def test_an_evaluation_begins_again_without_training(
    undisturbed: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, *PACK["topk"], *MEASURED, OFTEN)

    def interrupted(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("sae_sweeps.training.member.evaluate", interrupted)
        with pytest.raises(Interrupted):
            train(run)
    with monkeypatch.context() as patch:
        patch.setattr("sae_sweeps.training.trainer.Trainer.step", interrupted)
        [outcome] = train(run)
    assert isinstance(outcome, Result)
    assert_same(run, undisturbed[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, undisturbed: list[Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run(tmp_path, *PACK["topk"], *MEASURED, OFTEN)
    with pytest.raises(Interrupted):
        train_pack([run], Interrupting(0, 6))
    before, last = sorted((run.folder / "checkpoint").iterdir())
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    last.write_bytes({"cut": content[:-7], "flipped": content, "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        [outcome] = train(run)
    assert isinstance(outcome, Result)
    assert f"{last} is passed over" in caplog.text and str(before) not in caplog.text
    assert f"resumed at {4 * 512} tokens" in (run.folder / "run.log").read_text()
    assert_same(run, undisturbed[0])


def test_without_a_usable_checkpoint_a_run_starts_afresh(
    undisturbed: list[Run], tmp_path: Path
) -> None:
    run = small_run(tmp_path, *PACK["topk"], *MEASURED, OFTEN)
    save(run.files, Checkpoint("another", 512, {"a": torch.ones(2)}, {}))
    (run.folder / "metrics.jsonl").write_text('{"tokens": 512}\n{"tok')
    assert isinstance(train(run)[0], Result)
    assert_same(run, undisturbed[0])


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(7),
        "c": torch.zeros(0),
        "d": torch.ones(2) > 0,
    }
    folder = RunFolder(tmp_path)
    for tokens in (5, 10, 200):
        save(folder, Checkpoint("id", tokens, tensors, {"row": {"x": 0.1}}))
    names = [path.stem for path in sorted(folder.checkpoints.iterdir())]
    assert [int(name.removeprefix("step-")) for name in names] == [10, 200]
    found = latest(folder, "id")
    assert found is not None
    assert found.tokens == 200 and found.state == {"row": {"x": 0.1}}
    assert all(found.tensors[name].equal(tensor) for name, tensor in tensors.items())
    assert latest(folder, "other") is None
    assert latest(RunFolder(tmp_path / "nowhere"), "id") is None
    checkpoint.clear(folder)
    assert list(folder.checkpoints.iterdir()) == []


def test_checkpoints_come_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []

    def watch(folder: RunFolder, taken: Checkpoint) -> None:
        del folder
        saved.append(taken.tokens)

    monkeypatch.setattr("sae_sweeps.record.checkpoint.save", watch)
    train(small_run(tmp_path / "a", *PACK["topk"]))
    assert saved == []  # five minutes do not go by
    train(small_run(tmp_path / "b", *PACK["topk"], OFTEN))
    assert saved == list(range(512, 4097, 512))


@pytest.mark.slow
def test_text_that_changed_is_trained_on_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files' names are the same run, but never half of one text and half of another."""
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "cache"))
    text, other = tmp_path / "text", tmp_path / "other"
    for folder, names in ((text, "ab"), (other, "cd")):
        folder.mkdir()
        for index in range(60):
            words = (f"{names[index % 2]}{index} {number}" for number in range(400))
            (folder / f"{index}.txt").write_text(" ".join(words))
    data = ["data=text", f"data.path={text}", "data.held_out_share=0.3", "method=topk"]
    run, again = (small_run(tmp_path / name, *data, OFTEN) for name in ("run", "again"))
    for one in (run, again):
        with pytest.raises(Interrupted):
            train_pack([one], Interrupting(0, 3))
    assert isinstance(train(again)[0], Result)
    assert "resumed at 1024 tokens" in (again.folder / "run.log").read_text()
    for path in other.iterdir():
        (text / path.name).write_text(path.read_text())
    assert isinstance(train(run)[0], Result)
    log = (run.folder / "run.log").read_text()
    assert "passed over" in log and "of other data" in log and "resumed" not in log
    fresh = small_run(tmp_path / "fresh", *data)
    assert isinstance(train(fresh)[0], Result)
    weights = [load_file(r.folder / "checkpoint" / "weights.safetensors") for r in (run, fresh)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    assert weights[0]["W_enc"].ne(left_behind(again)[0]["W_enc"]).any()


@pytest.mark.parametrize(("cpu", "told"), [("AVX2 of old", True), (None, False)])
def test_a_run_resumed_on_another_cpu_says_so(cpu: str | None, told: bool, tmp_path: Path) -> None:
    """Of a checkpoint that does not say on which kind of CPU it was made nothing is known."""
    run = small_run(tmp_path, *PACK["topk"], *MEASURED, OFTEN)
    with pytest.raises(Interrupted):
        train_pack([run], Interrupting(0, 3))
    saved = latest(run.files, identity_of(run))
    assert saved is not None
    assert saved.state["computed"].pop("cpu") == torch.backends.cpu.get_cpu_capability()
    if cpu is not None:
        saved.state["computed"]["cpu"] = cpu
    save(run.files, saved)
    assert isinstance(train(run)[0], Result)
    log = (run.folder / "run.log").read_text()
    assert "resumed at" in log and ("weights are not what they would be" in log) == told


@pytest.mark.parametrize("deterministic", [True, False])
def test_operators_without_an_order_are_refused_where_it_is_asked_for(
    deterministic: bool, tmp_path: Path
) -> None:
    run, other = (
        small_run(tmp_path / name, *PACK["topk"], *MEASURED, f"deterministic={word}")
        for name, word in (("run", deterministic), ("other", False))
    )
    assert identity(run.config) == identity(other.config)
    try:
        assert isinstance(train(run)[0], Result)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    finally:
        assert isinstance(train(other)[0], Result)
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same(run, other)


def test_a_resumed_run_says_that_it_computes_otherwise(tmp_path: Path) -> None:
    run = small_run(tmp_path, *PACK["topk"], *MEASURED, OFTEN)
    with pytest.raises(Interrupted):
        train_pack([run], Interrupting(0, 3))
    saved = checkpoint.latest(run.files, identity_of(run))
    assert saved is not None
    here = saved.state["computed"]
    saved.state["computed"] = here | {"device": "cuda", "gemm": "cuda"}
    save(run.files, saved)
    assert isinstance(train(run)[0], Result)
    log = (run.folder / "run.log").read_text()
    assert f"computed with {saved.state['computed']} before, now with {here}: weights" in log


def identity_of(run: Run) -> str:
    """What a checkpoint of a run on the embedded text bears."""
    return digest([identity(run.config), None])
