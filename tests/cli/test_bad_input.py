"""A user's mistake: one line that names the option, exit code 1, nothing written, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Trainer, command, python, refusal, run, trainer, write

__all__ = ["run", "trainer"]  # fixtures

SCARCE = ["method=feature_choice", "k=2", "stream.batch_tokens=1024", "d_sae=1024"]

BAD: dict[str, list[str]] = {
    # misspelt, unknown and missing keys
    "allocator.kk is not an option. Did you mean 'k'?": ["allocator.kk=3"],
    "traning is not an option. Did you mean 'training'?": ["traning.lr=1"],
    "training.lrr is not an option of Training.": ["+training.lrr=1"],
    "foo is not an option": ["+foo=1"],
    "architecture.encoder_scal is not an option": ["+architecture.encoder_scal=1"],
    "method has no option 'topkk', expected one of": ["method=topkk"],
    "allocator has no option 'topk'": ["allocator=topk"],
    "sweep has no option 'paretoo'": ["+sweep=paretoo"],
    "hydra/launcher has no option 'locall'": ["hydra/launcher=locall"],
    "hydra.launcher.progres is not an option. Did": ["hydra.launcher.progres=off"],
    "hydra.launcher.progress is 'of', expected 'auto' or 'off'.": ["hydra.launcher.progress=of"],
    "target_model.model must be given": ["target_model=transformer_lens"],
    "target_model.path must be given": ["target_model=activations"],
    # types
    "training.tokens is 'abc', expected int.": ["training.tokens=abc"],
    "training.tokens is 1000.5, expected int.": ["training.tokens=1000.5"],
    "optimizer.lr is nan, expected a finite float.": ["optimizer.lr=nan"],
    "optimizer.lr is inf, expected a finite float.": ["optimizer.lr=inf"],
    "seed is True, expected int.": ["seed=true"],
    "seed is None, expected int.": ["seed=null"],
    "name is 2024, expected str (in quotes: \"'2024'\") or null.": ["name=2024"],
    "stream.repeat is 'maybe', expected bool.": ["stream.repeat=maybe"],
    "k is [4, 8], expected float.": ["k=[4,8]"],
    "allocator.k is 4.5, expected int.": ["k=4.5"],
    "architecture.l1_coef is 'aut', expected float or 'auto'. Did": ["architecture.l1_coef=aut"],
    "target_model.dtype is 'float3', expected": ["target_model.dtype=float3"],
    "tracking.tags is 'a', expected list[str].": ["tracking=wandb", "tracking.tags=a"],
    "allocator.rounding is 'random', expected 'largest_remainder' or 'stochastic'.": [
        "method=feature_choice",
        "allocator.rounding=random",
    ],
    "allocator is null, expected the name of an option.": ["allocator=null"],
    "sweep is empty, expected the name of an option.": ["sweep="],
    "training.tokens is None, expected int.": ["training=3"],
    "evaluation is 3, expected dict": ["evaluation=3"],
    # classes
    "allocator._target_ is 'no.such.Thing': there is no": ["allocator._target_=no.such.Thing"],
    "defines no 'Of'. Did you mean 'Off'?": ["tracking._target_=sae_sweeps.tracking.off.Of"],
    # values and combinations
    "k is 2000, expected at most d_sae, which is": ["k=2000"],
    "k is -4, expected more than 0.": ["k=-4"],
    "allocator.k is 2000, expected at most d_sae": ["allocator.k=2000"],
    "d_sae is 0, expected 1 to": ["d_sae=0"],
    "seed is -1, expected at least 0 and less than 2^63.": ["seed=-1"],
    "stream.seed is -1, expected at least 0 and less than 2^63.": ["stream.seed=-1"],
    "optimizer.lr is 0, expected more than 0.": ["optimizer.lr=0"],
    "optimizer.beta1 is 1, expected at least 0 and less than 1.": ["optimizer.beta1=1"],
    "aux_loss.coef is -1, expected at least 0.": ["aux_loss.coef=-1"],
    "aux_loss.tau is 0, expected more than 0.": ["aux_loss=aux_zipf", "aux_loss.tau=0"],
    "aux_loss.shift is -1, expected at least 0.": ["aux_loss=aux_zipf", "aux_loss.shift=-1"],
    "aux_loss.target_l0 is 2000, expected at most d_sae": [
        "aux_loss=aux_zipf",
        "aux_loss.target_l0=2000",
    ],
    "architecture.l1_coef is -0.1, expected at least 0.": ["architecture.l1_coef=-0.1"],
    "architecture.bandwidth is 0": ["method=jumprelu", "architecture.bandwidth=0"],
    "training.tokens is 0, expected at least 1.": ["training.tokens=0"],
    "stream.batch_tokens is 1024, expected at most training.tokens": ["training.tokens=1000"],
    "stream.batch_tokens is 1024, expected at most stream.chunk": ["stream.chunk_tokens=512"],
    "training.dead_window_tokens is 600000, expected": ["training.dead_window_tokens=6e5"],
    "schedule.warmup_tokens is 500000 and schedule.decay_": ["schedule.warmup_tokens=5e5"],
    "evaluation.ce_tokens is 40000, expected at most": ["evaluation.ce_tokens=40000"],
    "allocator.mutual_tokens is 600000, expected at most training.tokens": [
        "method=feature_choice",
        "allocator.mutual_tokens=6e5",
    ],
    "stream.batch_tokens is 1024: the rarest latent would get": SCARCE,
    "device is 'gpu', expected auto, cpu": ["device=gpu"],
    # target models
    "target_model.hook is 'blocks.9.hook_resid_post', expected blocks.0 to blocks.3": [
        "target_model.hook=blocks.9.hook_resid_post"
    ],
    "Did you mean 'blocks.1.hook_resid_post'?": ["target_model.hook=blocks.1.hook_resid_pst"],
    "target_model.model is 'some/model': neither a folder nor": ["target_model.model=some/model"],
    "target_model.model is './there': there is no such folder": ["target_model.model=./there"],
    "target_model.path is 'x.npy': there is no such": [
        "target_model=activations",
        "target_model.path=x.npy",
    ],
    "target_model.path is 'x.csv', expected a .npy": [
        "target_model=activations",
        "target_model.path=x.csv",
    ],
    # names and axes
    "name=a,b: a sweep has one name": ["name=a,b"],
    "name=choice(a,b): a sweep has one name": ["name=choice(a,b)"],
    "+sweep=pareto,smoke: a sweep has one sweep": ["+sweep=pareto,smoke"],
    "name is 'a/b', expected at most 100 letters": ["name=a/b"],
    "name is '..', expected at most 100 letters": ["name=.."],
    "tracking differs between points": ["tracking=off,wandb"],
    "device differs between points": ["device=cpu,cuda"],
    "evaluation differs between points": ["evaluation.tokens=20000,30000"],
    "k is given twice: k=1 and k=2.": ["k=1", "k=2"],
    "allocator.k is given twice: allocator.k=": ["allocator.k=1", "allocator.k=2"],
    "optimizer.lr=interval(0,1) has no single values": ["optimizer.lr=interval(0,1)"],
    "an axis has no values": ["seed=range(3,3)"],
    "Sweeping over Hydra's configuration is not supported": ["hydra.launcher.progress=off,auto"],
    # grammar, interpolation, flags
    "cannot read 'k=[1': no viable": ["k=[1"],
    "~seed: options cannot be taken out": ["~seed"],
    "optimizer.lr is '${now:%H}': a run's options may not": ["optimizer.lr=${now:%H}"],
    "optimizer.lr is '${hydra:job.num}': a run's": ["optimizer.lr=${hydra:job.num}"],
    "optimizer.lr: Interpolation key 'nothing' not found": ["optimizer.lr=${nothing}"],
    "schedule.decay_tokens: ${share:x} needs a number": ["schedule.decay_tokens=${share:x}"],
    "use +sweep=pareto": ["sweep=pareto"],
    "'nowhere' not found": ["--config-dir", "nowhere"],
    "'--bogus' is not a flag.": ["--bogus"],
    "'--config-dirr' is not a flag. Did you mean '--config-dir'?": ["--config-dirr", "x=1"],
    "argument --cfg/-c: invalid choice: 'jb'": ["-c", "jb"],
    "'reprot' is not a command (plan, status, wait, cancel, retry, report, sync, dashboard) nor": [
        "reprot",
        "x=1",
    ],
    "'outputs/x' is not a command": ["outputs/x"],
}


@pytest.mark.parametrize("expected", BAD)
def test_a_mistake_is_refused_in_one_line(
    expected: str,
    run: Callable[..., int],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words = BAD[expected]
    if any(word.startswith("tracking") for word in words):
        assert command(monkeypatch, *words) == 1
    else:
        assert run(*words) == 1
    line = refusal(capsys, tmp_path).replace(str(tmp_path) + "/", "")
    assert expected in line
    assert trainer.runs == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=topk,gated", "allocator.k=5"], "allocator.k is not an option. (in: method=gated"),
        (["k=8,2000", "seed=0,1"], "expected at most d_sae, which is 1024. (in: k=2000 seed=0)"),
        (["k=2,16", "method=feature_choice,topk"], "(in: k=2 method=feature_choice)"),
        (
            ["method=relu,gated", "architecture.l1_coef=1,x"],
            "(in: method=relu architecture.l1_coef=x)",
        ),
    ],
)
def test_a_mistake_in_one_point_names_the_point(
    words: list[str],
    expected: str,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run("-m", *words) == 1
    assert expected in refusal(capsys, tmp_path)


@pytest.mark.slow
def test_the_batch_that_feature_choice_needs_is_named_and_enough(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(*SCARCE) == 1
    line = refusal(capsys, tmp_path)
    assert line.endswith(", or allocator.rounding=stochastic.")
    needed = int(line.partition("stream.batch_tokens=")[2].split()[0])
    others = [word for word in SCARCE if not word.startswith("stream")]
    assert run(*others, f"stream.batch_tokens={needed - 1}") == 1
    capsys.readouterr()
    assert run(*others, f"stream.batch_tokens={needed}") == 0
    assert run(*SCARCE, "allocator.shift=1000") == 0
    assert run(*SCARCE, "allocator.rounding=stochastic") == 0


def test_a_file_that_shadows_a_shipped_one(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path / "mine/allocator/token_choice.yaml", "k: 3\n")
    assert run("--config-dir", "mine") == 1
    assert "mine/allocator/token_choice.yaml has the name of a" in refusal(capsys, tmp_path)
    assert run(f"hydra.searchpath=[file://{tmp_path}/mine]") == 1
    assert "mine/allocator/token_choice.yaml has the name of a" in refusal(capsys, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hydra: {sweeper: {params: {name: 'a,b'}}}", "name is the same for a whole sweep"),
        ("hydra: {sweeper: {points: [{name: a}]}}", "name is the same for a whole sweep"),
        (
            "hydra: {sweeper: {params: {hydra.launcher.progress: 'off'}}}",
            "hydra.launcher.progress is the same",
        ),
        ("hydra: {sweeper: {points: {k: 4}}}", "hydra.sweeper.points must be a list of mappings"),
        ("hydra: {sweeper: {params: [k]}}", "hydra.sweeper.params must be a mapping"),
        ("hydra: {sweeper: {points: [{k: 4}, {kk: 4}]}}", "kk is not an option"),
        ("trainin: {lr: 1}", "trainin is not an option. Did you mean 'training'?"),
        ("1: 2", "the config has the key 1, expected text."),
    ],
)
def test_a_sweep_file_with_a_mistake(
    text: str,
    expected: str,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write(tmp_path / "mine/sweep/mine.yaml", f"# @package _global_\n{text}\n")
    assert run("--config-dir", "mine", "+sweep=mine") == 1
    assert expected in refusal(capsys, tmp_path)


def test_a_method_file_without_its_first_line(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path / "mine/method/mine.yaml", "k: 3\n")
    assert run("--config-dir", "mine", "method=mine") == 1
    assert "method holds options: its file must begin with" in refusal(capsys, tmp_path)


def test_a_model_that_needs_the_network_when_there_is_none(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("target_model.model=some/model") == 1
    assert "HF_HUB_OFFLINE is set" in refusal(capsys, tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert run("target_model.model=some/model") == 1
    assert "127.0.0.1 does not answer" in refusal(capsys, tmp_path)


@pytest.mark.slow
def test_a_model_in_the_cache_or_a_folder_is_judged_by_its_config(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    shot = tmp_path / "home/hub/models--some--model/snapshots/1"
    for folder in (shot, tmp_path / "folder"):
        write(folder / "config.json", json.dumps({"num_hidden_layers": 2}))
        for name in ("model.safetensors", "tokenizer.json"):
            write(folder / name, "")
    write(shot.parent.parent / "refs/main", "1")
    for model in ("some/model", "model", "folder", str(tmp_path / "folder")):
        hook = "target_model.hook=blocks.2.hook_resid_pre"
        assert run(f"target_model.model={model}", hook) == 1
        assert "expected blocks.0 to blocks.1" in refusal(capsys, tmp_path)
        hook = "target_model.hook=blocks.1.attn.hook_z"  # judged when the model is loaded
        assert run(f"target_model.model={model}", hook, f"name={model[-5:]}") == 0
        capsys.readouterr()
        (tmp_path / "outputs").rename(tmp_path / f"done{hash(model)}")


def test_refusals_load_no_torch_and_say_one_line(tmp_path: Path) -> None:
    code = """
import sys
from sae_sweeps.__main__ import main
for words in (["k=2000"], ["method=feature_choice", "k=2", "d_sae=1024"], ["allocator=nope"],
              ["target_model.hook=blocks.9.hook_resid_post"], ["-m", "k=1,2", "seed=0,x"]):
    sys.argv = ["sae-sweeps", *words]
    try:
        main()
    except SystemExit as end:
        assert end.code == 1, words
assert "torch" not in sys.modules and "wandb" not in sys.modules
"""
    ended = python(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stderr.splitlines()) == 5
    assert not list(tmp_path.iterdir())


def test_the_full_error_is_to_be_had(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="expected at most d_sae"):
        run("k=2000")


def test_an_error_of_our_own_keeps_its_traceback(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path
) -> None:
    def fault(_: object) -> None:
        raise ZeroDivisionError("a fault in the code")

    trainer.before_ready = fault
    with pytest.raises(ZeroDivisionError):
        run()
    assert not (tmp_path / "outputs").exists()
