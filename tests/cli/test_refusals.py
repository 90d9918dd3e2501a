"""Refusals of what is not a wrong option alone: giants, stray words, no memory, no device."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweeps.errors import ConfigError
from tests.support.commands import Trainer, command, python, refusal, run, trainer

__all__ = ["run", "trainer"]  # fixtures

BAD: dict[str, list[str]] = {
    # axes
    "more than 10000 values": ["seed=range(0,1e300)"],
    "the axes have 40000 combinations, expected at most 10000.": [
        "seed=range(200)",
        "k=range(200)",
    ],
    "'seed=range(1,2,0)': range() arg 3 must not be zero": ["seed=range(1,2,0)"],
    # giants
    "AuxK', expected a subclass of Resampling.": [
        "resampling._target_=sae_sweeps.aux_loss.aux_k.AuxK",
        "+resampling.coef=1",
        "+resampling.k_aux=1",
    ],
    "NoAux', expected a subclass of Allocator.": [
        "allocator=none",
        "allocator._target_=sae_sweeps.aux_loss.none.NoAux",
    ],
    "threads is 2000, expected 1 to 1024.": ["threads=2000"],
    "stream.batch_tokens is 1, expected 2 to 2^26.": ["stream.batch_tokens=1"],
    "stream.chunk_tokens is 1e+12, expected 1 to 2^26.": ["stream.chunk_tokens=1e12"],
    "stream.calibration_tokens is 1e+12, expected 1": ["stream.calibration_tokens=1e12"],
    "training.tokens is 1e+300, expected less than 2^63.": ["training.tokens=1e300"],
    "k is 'aaaa": ["k=" + "a" * 10_000],
    "is nested too deeply.": ["k=" + "[" * 300 + "]" * 300],
    "File name too long": ["architecture=" + "a" * 5000],
    # what a folder cannot have
    "target_model.revision is 'v1', but only models of the hub have revisions, and 'embedded'": [
        "target_model.revision=v1"
    ],
    "data.revision is 'v1', but only data sets of the hub have revisions, and '.' is a folder": [
        *("data=c4", "data.dataset=.", "data.revision=v1")
    ],
    # what is not an option file's name
    "architecture is [relu,gated], expected the name of": ["architecture=[relu,gated]"],
    "allocator is ../architecture/relu, expected the name": ["allocator=../architecture/relu"],
    # grammar, interpolation, flags
    "lr is not an option. Did you mean 'optimizer.lr'?": ["lr=3e-4"],
    "'8' is not an option: write key=value, without spaces (k=4,8).": ["k=4,", "8"],
    "'+=' is not an option: write key=value": ["+="],
    "Environment variable 'NO_SUCH' not found": ["k=${oc.env:NO_SUCH}"],
    "cannot read 'k=4,': mismatched input its end": ["k=4,"],
    "cannot read 'name=ü': special characters must stand in quotes": ["name=ü"],
    "cannot read 'k=int(abc)': 'int(abc)': invalid literal": ["k=int(abc)"],
    "cannot read 'k=json(1)': 'json(1)': Unknown function": ["k=json(1)"],
    "training.tokens refers to itself.": ["training.tokens=${share:0.5}"],
    "sae-sweeps: k refers to itself.": ["k=${run_id:}"],
    "name: Interpolation key 'nothing' not found": ["name=${nothing}"],
    "target_model.model is '**': there is no such folder.": ["target_model.model='**'"],
    "target_model.model is '~nobody/x': there is no such folder.": [
        "target_model.model='~nobody/x'"
    ],
    "aaa': there is no such folder.": ["target_model.model=" + "a" * 5000],
    "aaa.npy': there is no such file.": [
        "target_model=activations",
        f"target_model.path={'a' * 5000}.npy",
    ],
    "target_model.magnitude_sigma is 1e+300, expected 0 to 10.": [
        "target_model=synthetic",
        "target_model.magnitude_sigma=1e300",
    ],
    "cannot read aaa": ["hydra.sweep.dir=" + "a" * 300],
    "needs 1. Allowed is a larger k or allocator.shift": [
        "method=feature_choice",
        "allocator.exponent=300",
    ],
    "k: ${share:} needs a number": ["k=${share:}"],
    "path=nowhere is not available": ["hydra.searchpath=[nowhere]"],
    "overriding with `hydra.mode=MULTIRUN`": ["hydra.mode=RUN"],
    "'--k' is not a flag. Options have no dashes: k=16.": ["--k", "16"],
    "ambiguous option: --config could match": ["--config", "x"],
    "argument --config-name/-cn: expected one argument": ["k=1", "-cn", "k=1"],
    "'query=bash' is for shells to ask: COMP_LINE is not set.": ["-sc", "query=bash"],
}


@pytest.mark.parametrize("expected", BAD)
def test_a_mistake_is_refused_in_one_line(
    expected: str,
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run(*BAD[expected]) == 1
    assert expected in refusal(capsys, tmp_path).replace(str(tmp_path) + "/", "")
    assert trainer.runs == []


def test_two_dashes_end_the_flags(run: Callable[..., int], trainer: Trainer) -> None:
    assert run("-m", "--", "seed=0,1") == 0
    assert len(trainer.runs) == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("you tried to allocate 2147483648 bytes"),
            "cannot give 2147483648 bytes more",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"), "2.00 GiB more"),
        (MemoryError(), "which cannot give enough: d_sae,"),
    ],
)
def test_runs_that_do_not_fit_into_memory(
    error: Exception,
    expected: str,
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def full(_: object) -> None:
        raise error

    trainer.before_ready = full
    assert run("hydra.launcher.progress=off") == 1
    assert expected in refusal(capsys, tmp_path)


def test_a_device_that_is_not_here(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for device in ("cuda:99", "cuda:" + "9" * 30):
        assert run(f"device={device}", "hydra.launcher.progress=off") == 1
        text = f"device is '{device}', which cannot be had here: "
        assert text in refusal(capsys, tmp_path)


def test_what_only_the_data_can_tell_is_refused_before_anything_is_said(
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def short(_: object) -> None:
        raise ConfigError("the data hold 10 training tokens.")

    trainer.before_ready = short
    assert run("hydra.launcher.progress=off") == 1
    assert "the data hold 10" in refusal(capsys, tmp_path)


def test_a_verb_with_wrong_arguments(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    del trainer
    assert command(monkeypatch, "report") == 1
    assert "arguments are required: folder" in refusal(capsys, tmp_path)
    assert command(monkeypatch, "report", "x", "--bogus") == 1
    assert "unrecognized arguments: --bogus" in refusal(capsys, tmp_path)


def test_a_flag_whose_value_may_be_left_out_takes_no_option_for_it(tmp_path: Path) -> None:
    # In an interpreter of its own, since it turns Hydra's logging on for good.
    code = "from sae_sweeps.__main__ import main; main()"
    ended = python(code, tmp_path, ["method=gated", "--info"])
    assert ended.returncode == 0 and "Defaults" in ended.stdout, ended.stderr
    assert not list(tmp_path.iterdir())
