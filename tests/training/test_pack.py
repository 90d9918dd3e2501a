"""Packs: company changes nothing, a failure stays alone, a repeated attempt starts clean."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.errors import ConfigError
from sae_sweeps.record.result import Result
from sae_sweeps.system import files
from sae_sweeps.training import results
from tests.support.runs import assert_equal_runs, rows, weights
from tests.support.small import measure, small_run, train

METHODS = ("relu", "gated", "jumprelu", "topk", "mutual_choice", "feature_choice")
UNMEASURED = "evaluation.tokens=128", "evaluation.ce_tokens=0"
WIDE = "stream.batch_tokens=1024"  # room for feature choice's budgets


def test_every_run_is_the_same_alone_and_packed_with_one_that_fails(tmp_path: Path) -> None:
    healthy = [small_run(tmp_path / "with", f"method={method}", WIDE) for method in METHODS]
    broken = small_run(tmp_path / "with", "method=topk", "optimizer.lr=1e30", WIDE)
    outcomes = train(*healthy[:1], broken, *healthy[1:])
    assert isinstance(outcomes.pop(1), FloatingPointError)
    assert all(isinstance(outcome, Result) for outcome in outcomes)
    for run, method in zip(healthy, METHODS, strict=True):
        alone = small_run(tmp_path / "alone", f"method={method}", WIDE)
        train(alone)
        assert_equal_runs(run, alone)
    assert not (broken.folder / "result.json").exists()
    assert "FloatingPointError" in json.loads((broken.folder / "failed.json").read_text())["error"]
    log = (broken.folder / "run.log").read_text()
    assert "Traceback (most recent call last)" in log and "FloatingPointError: the loss is" in log


def test_members_may_differ_in_length_and_width(tmp_path: Path) -> None:
    short = small_run(tmp_path, "training.tokens=1536", "d_sae=32")
    long = small_run(tmp_path, "training.tokens=4096")
    outcomes: list[Any] = train(short, long)
    assert [outcome.tokens for outcome in outcomes] == [1536, 4096]
    assert weights(short)["W_dec"].shape == (32, 128)


def test_another_attempt_replaces_what_the_last_one_left(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    train(run)
    first = rows(run)
    (run.folder / "result.json").unlink()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"tokens": 99')  # torn by a kill
    (run.folder / "failed.json").write_text("{}")
    train(run)
    assert rows(run) == first
    assert not (run.folder / "failed.json").exists()


def test_a_fixed_coefficient_stays(tmp_path: Path) -> None:
    run = small_run(tmp_path, "method=relu", "architecture.l1_coef=0.3")
    train(run)
    for row in rows(run):
        assert row["train/l1_coef"] == pytest.approx(0.3)


def test_a_full_disk_fails_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and failed.json of one run cannot be written; the other finishes."""
    full, healthy = small_run(tmp_path, "seed=1"), small_run(tmp_path)

    def replacing(path: Path) -> Any:
        if path.is_relative_to(full.folder):
            raise OSError(28, "No space left on device", str(path))
        return files.replacing(path)

    monkeypatch.setattr(results, "replacing", replacing)
    outcomes = train(full, healthy)
    assert isinstance(outcomes[0], OSError) and isinstance(outcomes[1], Result)
    assert not (full.folder / "result.json").exists()
    assert not list(full.folder.rglob("*.safetensors"))


@pytest.mark.slow
def test_measuring_anew_gives_what_training_with_those_options_would(tmp_path: Path) -> None:
    old, new = small_run(tmp_path), small_run(tmp_path, "evaluation.tokens=2048")
    assert old.folder == new.folder
    train(old)
    before = weights(old)
    [result] = measure(new)
    assert isinstance(result, Result)
    assert result == new.files.result()
    fresh = small_run(tmp_path / "fresh", "evaluation.tokens=2048")
    train(fresh)
    expected = fresh.files.result()
    assert result.evaluation == expected.evaluation != {}
    for key, value in expected.metrics.items():
        assert result.metrics[key] == pytest.approx(value, rel=1e-4), key
    assert all(tensor.equal(before[name]) for name, tensor in weights(new).items())


def test_what_cannot_be_measured_anew_keeps_its_result(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    train(run)
    kept = (run.folder / "result.json").read_text()
    (run.folder / "checkpoint" / "weights.safetensors").write_bytes(b"torn")
    [outcome] = measure(small_run(tmp_path, "evaluation.tokens=2048"))
    assert isinstance(outcome, Exception)
    assert (run.folder / "result.json").read_text() == kept


def test_seeds_act(tmp_path: Path) -> None:
    runs = [small_run(tmp_path, f"seed={seed}", *UNMEASURED) for seed in (0, 1)]
    train(*runs)
    assert not weights(runs[0])["W_enc"].equal(weights(runs[1])["W_enc"])
    other = small_run(tmp_path, "stream.seed=1", *UNMEASURED)
    train(other)
    assert not weights(runs[0])["W_enc"].equal(weights(other)["W_enc"])


def test_nothing_is_written_when_the_data_are_too_short(tmp_path: Path) -> None:
    run = small_run(tmp_path, "training.tokens=1e9")
    with pytest.raises(ConfigError, match=r"training\.tokens is 1000000000.*stream\.repeat"):
        train(run)
    assert not run.folder.exists()


def test_nothing_is_written_when_the_hook_does_not_exist(tmp_path: Path) -> None:
    run = small_run(tmp_path, "target_model.hook=blocks.1.hook_resid_pst")
    with pytest.raises(ConfigError, match=r"target_model\.hook.*hook_resid_post"):
        train(run)
    assert not run.folder.exists()
