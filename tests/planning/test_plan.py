"""`sae-sweeps plan`: what a command would take, against arithmetic by hand; nothing is done."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.planning import outlook
from sae_sweeps.planning.gpus import GPUS, named
from sae_sweeps.planning.memory import CONTEXT
from sae_sweeps.system import hugging_face
from tests.support.commands import Trainer, command, refusal, run, trainer
from tests.support.fake_hub import FakeHub, serving

__all__ = ["run", "trainer"]  # fixtures

Plan = Callable[..., dict[str, Any]]

GPT2 = {
    **{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "vocab_size": 50_257,
}
GEMMA = {
    **{"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "head_dim": 256},
    **{"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4},
    "vocab_size": 256_000,
}
"""Of their config.json what is read of it."""
WORDS = (
    *("k=32", "seed=0,1", "training.tokens=100e6", "stream.batch_tokens=4096"),
    *("evaluation.tokens=200e3", "evaluation.ce_tokens=16384", "hydra/launcher=slurm"),
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that has the two models' configs, and no weights to give."""
    del trainer
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "tokens"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    cached = hugging_face._answers, hugging_face.refusal, hugging_face.model_config  # pyright: ignore[reportPrivateUsage]
    for function in cached:
        function.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    models = {"openai-community/gpt2": GPT2, "google/gemma-2-2b": GEMMA}
    with serving() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        for name, config in models.items():
            folder = fake.folders[name] = tmp_path / "hub" / name
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(config))
        for name in ("Skylion007/openwebtext", "HuggingFaceFW/fineweb"):
            fake.folders[name] = tmp_path / "hub"
        yield fake
    for function in cached:
        function.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Give a function that plans a command and reads the JSON document."""

    def plan(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert command(monkeypatch, "plan", "--json", *words) == 0
        return json.loads(capsys.readouterr().out)

    return plan


# --- By hand -------------------------------------------------------------------------------

H200 = {"products": 0.71 * 989e12, "streamed": 0.75 * 4.8e12, "float32": 0.71 * 67e12}


def seconds_by_hand(d_in: int, d_sae: int, below: float, passed: float) -> float:
    """Two runs of token choice on an H200: 24,414 steps each, one pass, two evaluations.

    And 15 s until a process has begun, without the model's weights.
    """
    parameters, batch = 2 * d_in * d_sae, 4096
    pairs = batch * 32 * d_in * 4 * 4 / 0.7  # rows of pairs, read four times, here and there
    moved = 62 * parameters + 5 * batch * d_sae * 4 + pairs
    step = batch * parameters / H200["products"] + moved / H200["streamed"]
    a_token = 2 / (0.57 * H200["products"])
    passes = (24_414 * 4096 + 16_384 + 200_000) * a_token * below
    predictions = (4 + 2) * 16_384 * a_token * passed
    measured = 4 * parameters / H200["float32"] + 40 * d_sae / H200["streamed"]
    evaluations = 2 * (200_000 + 16_384 / 2) * measured
    return 15 + 2 * 24_414 * step + passes + predictions + evaluations


def test_gpt2_small_by_hand(planned: Plan, hub: FakeHub) -> None:
    del hub
    words = ("target_model=gpt2_small", "method=topk", "d_sae=24576", "--gpu", "h200")
    found = planned(*words, *WORDS)
    [pack] = found["packs"]
    weights = 2 * 768 * 24_576
    # Weights, moments and a rounded encoder 13 bytes; in evaluation a copy and 1.6 matrices.
    runs = 2 * 13 * weights + 4 * weights + 1.6 * 4 * 4096 * 24_576
    block = 12 * 768**2
    model = 2 * (12 * block + (50_257 + 1024) * 768)
    shared = 2**29 + 2 * 50_257 * 16 * 128 + 4 * 768 * (3 * 32_768 + 200_000)
    assert pack["memory_bytes"] == pytest.approx(CONTEXT + runs + model + shared, rel=1e-3)
    by_hand = seconds_by_hand(768, 24_576, 7 * block, 12 * block + 50_257 * 768) + model / 1e9
    assert pack["seconds"] == pytest.approx(by_hand, rel=0.01)
    assert found["seconds"] == pack["seconds"] == pytest.approx(3600 * found["device_hours"])
    assert pack["pass_tokens"] == 24_414 * 4096 == found["alone_tokens"] // 2
    assert found["disk"]["weights"] == 2 * 8 * weights
    assert found["disk"]["checkpoints"] == 2 * 24 * weights
    assert found["disk"]["token_cache"] == pytest.approx(2 * 100.5e6 * 128 / 127, rel=1e-6)


def test_gemma_2_2b_by_hand(planned: Plan, hub: FakeHub) -> None:
    """Its vocabulary takes four bytes a token on disk; two packs, since one GPU takes one run."""
    del hub
    memory = "hydra.launcher.gpu_memory=24G"
    words = ("target_model=gemma_2_2b", "method=topk", "d_sae=65536", "--gpu", "h200", memory)
    found = planned(*words, *WORDS)
    weights = 2 * 2304 * 65_536
    run = 13 * weights + 4 * weights + 1.6 * 4 * 4096 * 65_536
    block = 2 * 2304 * 256 * (8 + 4) + 3 * 2304 * 9216
    model = 2 * (26 * block + 256_000 * 2304)
    shared = 2**29 + 2 * 256_000 * 16 * 128 + 4 * 2304 * (3 * 32_768 + 200_000)
    packs = found["packs"]
    assert [pack["runs"] for pack in packs] == [1, 1]
    for pack in packs:
        assert pack["memory_bytes"] == pytest.approx(CONTEXT + run + model + shared, rel=1e-3)
    below, passed = 13 * block, 26 * block + 256_000 * 2304
    together = seconds_by_hand(2304, 65_536, below, passed)
    again = (24_414 * 4096 + 216_384) * 2 * below + 4 * 16_384 * 2 * passed
    apart = together + again / (0.57 * H200["products"]) + 15 + 2 * model / 1e9
    assert found["device_hours"] == pytest.approx(apart / 3600, rel=0.01)
    assert found["seconds"] == pytest.approx(apart / 2, rel=0.01)  # side by side
    assert found["disk"]["token_cache"] == pytest.approx(4 * 100.5e6 * 128 / 127, rel=1e-6)
    assert found["room_bytes"] == 24 * 10**9


def test_a_model_is_asked_for_once_and_nothing_of_it_kept(planned: Plan, hub: FakeHub) -> None:
    planned("target_model=gpt2_small", "method=topk,relu", *WORDS)
    asked = [line for line in hub.asked if line.startswith("GET")]
    assert len(asked) == 1 and asked[0].endswith("gpt2/resolve/main/config.json")
    assert not Path(os.environ["HF_HOME"]).exists()


def test_what_nobody_knows_yet_is_null(
    planned: Plan, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hook whose width a config.json does not tell."""
    del hub
    words = ("target_model=gpt2_small", "target_model.hook=blocks.1.attn.hook_q", *WORDS)
    found = planned(*words)
    [pack] = found["packs"]
    assert pack["memory_bytes"] is None and pack["seconds"] is None
    assert found["seconds"] is None and found["disk"]["weights"] is None
    assert command(monkeypatch, "plan", *words) == 0
    assert "Time: not known before the target model is here" in capsys.readouterr().out


# --- Nothing is done -----------------------------------------------------------------------


@pytest.mark.parametrize("dry", [("plan",), ("--dry-run",)])
def test_nothing_is_written_and_nobody_trains(
    dry: tuple[str],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Without SLURM, too: a plan needs no cluster."""
    before = sorted(tmp_path.rglob("*"))
    words = ("method=topk,relu", "k=4,8", "hydra/launcher=slurm")
    assert command(monkeypatch, *dry, *words) == 0
    said = capsys.readouterr()
    assert "4 runs to train" in said.out and "Nothing was written" in said.out
    assert "from the rates of the H100" in said.out and said.err == ""
    assert sorted(tmp_path.rglob("*")) == before and trainer.runs == []


def test_a_plan_leaves_the_next_command_as_it_is(
    run: Callable[..., int], trainer: Trainer, planned: Plan
) -> None:
    words = ("method=topk,relu", "name=it")
    assert planned(*words, "hydra/launcher=slurm")["to_train"] == 2
    assert run(*words) == 0
    assert len(trainer.runs) == 2
    after = planned(*words, "k=8,16", "hydra/launcher=slurm")
    assert (after["finished"], after["to_train"]) == (2, 2)


def test_what_a_checkpoint_has_is_not_trained_again_unless_force_says_so(
    run: Callable[..., int], trainer: Trainer, planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    """327,680 tokens in all, of which a checkpoint saw 300,032."""
    words = ("name=it", "hydra/launcher=slurm")
    assert run("name=it") == 0
    [only] = trainer.runs
    only.files.finished.unlink()
    only.files.checkpoints.mkdir(exist_ok=True)
    only.files.step(300_032).touch()
    rest, anew = planned(*words), planned(*words, "force=true")
    assert rest["packs"][0]["pass_tokens"] == rest["alone_tokens"] == 27_648
    assert anew["packs"][0]["pass_tokens"] == anew["alone_tokens"] == 327_680
    capsys.readouterr()
    assert run("name=it", "force=true") == 0
    assert "from a checkpoint" not in capsys.readouterr().out


def test_a_mistake_is_refused_as_without_plan(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    del trainer
    assert command(monkeypatch, "plan", "k=2000") == 1
    assert "k is 2000, expected at most d_sae" in refusal(capsys, tmp_path)
    assert command(monkeypatch, "plan", "--gpu", "v1", "k=4") == 1
    assert "invalid choice: 'v1' (choose from" in refusal(capsys, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plan", "hydra/launcher=basic"], "only of local and slurm there is a plan"),
        (["plan", "hydra/sweeper=basic"], "only of points there is a plan"),
        (["plan", "hydra/sweeper=basic", "hydra/launcher=basic"], "only of points there is a plan"),
        (["plan", "--run", "k=8"], "only of a sweep there is a plan"),
        (["-r", "k=8", "--dry-run"], "only of a sweep there is a plan"),
        (["plan", "--experimental-rerun", "x.pickle"], "only of a sweep there is a plan"),
        (["plan", "retry", "outputs/x"], "there is no plan of retry"),
    ],
)
def test_what_would_go_another_way_is_refused_and_not_done(
    words: list[str],
    expected: str,
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert command(monkeypatch, *words) == 1
    assert expected in refusal(capsys, tmp_path)
    assert trainer.runs == []


def test_of_a_finished_sweep_nothing_is_ahead(
    run: Callable[..., int],
    trainer: Trainer,
    planned: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del trainer
    assert run("name=it") == 0
    found = planned("name=it")
    assert found["packs"] == [] and found["seconds"] == found["device_hours"] == 0
    assert (found["finished"], found["to_train"]) == (1, 0)
    assert command(monkeypatch, "plan", "name=it") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("it: 0 runs to train, 1 finished") and len(said) == 2


def test_brackets_in_a_name_are_shown(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    del trainer
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "x[/bold]" / "a[red].npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((4, 8), np.float32))
    words = (f"target_model.path='{path.relative_to(tmp_path)}'", "target_model=activations")
    assert command(monkeypatch, "plan", "--gpu", "h100", *words) == 0
    assert "x[/bold]/a[red].npy" in capsys.readouterr().out


def test_a_launch_does_not_fail_for_what_is_only_told(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    del trainer
    for name, text in {"sbatch": "echo Submitted batch job 7", "srun": "exit 1"}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(outlook, "of_plan", Mock(side_effect=ZeroDivisionError))
    assert command(monkeypatch, "hydra/launcher=slurm", "name=it", "tracking=off") == 0
    said = capsys.readouterr().out
    assert "Submitted: job 7" in said and "Ahead" not in said


def test_a_pack_too_large_for_its_gpu_is_told(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del trainer
    words = ("d_sae=65536", "hydra/launcher=slurm")
    assert command(monkeypatch, "plan", *words, "hydra.launcher.gpu_memory=1G") == 0
    assert "may not fit into 1.0 GB" in capsys.readouterr().out
    assert command(monkeypatch, "plan", *words, "hydra.launcher.gpu_memory=80G") == 0
    assert "may not fit" not in capsys.readouterr().out


# --- Parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("NVIDIA H100 80GB HBM3", "h100"), ("a100-sxm4-80gb", "a100"), ("gpu:l40s:1", "l40s")),
        *(("NVIDIA GH200 480GB", "gh200"), ("rtx_4090", "rtx4090"), ("RTX A6000", "a6000")),
        *(("1", None), ("gpu", None), ("v100", None), ("rtx_a4000:1", None), ("a1000", None)),
        *(("all-4h", None), ("small40", None), ("el-40", None), ("h100,a100", "h100")),
    ],
)
def test_names_of_gpus(text: str, expected: str | None) -> None:
    assert named(text) == expected


def test_every_gpu_is_found_by_its_title() -> None:
    assert {name: named(gpu.title) for name, gpu in GPUS.items()} == {name: name for name in GPUS}


@pytest.mark.parametrize("option", ["gpus=a100:1", "constraint=a100", "extra={gres: 'gpu:a100:1'}"])
def test_a_cluster_s_gpu_is_the_one_that_options_name(
    option: str, planned: Plan, trainer: Trainer
) -> None:
    del trainer
    words = ("hydra/launcher=slurm", f"hydra.launcher.{option}")
    assert "the A100" in planned(*words)["basis"]
    assert "the L4" in planned(*words, "--gpu", "l4")["basis"]


def test_gpus_that_a_job_has_for_itself_count(planned: Plan, trainer: Trainer) -> None:
    del trainer
    one, two = (planned("hydra/launcher=slurm", f"hydra.launcher.gpus={n}") for n in (1, 2))
    assert two["device_hours"] == 2 * one["device_hours"] > 0
    many = planned("hydra/launcher=slurm", "hydra.launcher.array_parallelism=3000000000")
    assert many["seconds"] == one["seconds"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 6))
def test_packs_side_by_side_end_when_the_last_one_does(seconds: list[int], at_once: int) -> None:
    """As in ten naive lines: each goes to the device that is free first."""
    free = [0] * at_once
    for own in seconds:
        free[free.index(min(free))] += own
    assert outlook._makespan(seconds, at_once) == max(free)  # pyright: ignore[reportPrivateUsage]
