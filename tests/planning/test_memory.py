"""What runs are planned to take of an accelerator's memory, against arithmetic by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_sweeps.config.options import RunConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching import workers
from sae_sweeps.launching.slurm import gpu_bytes
from sae_sweeps.planning.costs import UNKNOWN
from sae_sweeps.planning.memory import CONTEXT, fitting, of_pack, of_run, width_of
from sae_sweeps.target_model import facts
from tests.support.small import small_run

D_IN = 768
GPT2 = ("d_sae=24576", "k=32", "stream.batch_tokens=4096", "stream.chunk_tokens=32768")
PARAMETERS = 2 * 768 * 24_576
MATRIX = 4 * 4096 * 24_576
"""Bytes in float32."""
ACTIVATIONS = 2 * 4 * 4096 * 768


def config_of(*words: str) -> RunConfig:
    return small_run(Path(), *GPT2, *words).config


def test_token_choice_by_hand() -> None:
    """Weights 4 bytes, moments 8, the encoder in bfloat16 2 of one half: 13 a parameter."""
    memory = of_run(config_of("method=topk"), D_IN)
    assert memory.held == 13 * PARAMETERS == 490_733_568
    # The matrix in bfloat16, gradients, the decoder's once more without what changes its norms.
    assert memory.step == MATRIX // 2 + 6 * PARAMETERS + ACTIVATIONS == 452_984_832


def test_relu_by_hand() -> None:
    """Nothing is listed: the decoder is rounded, too, and most of a step are matrices."""
    memory = of_run(config_of("method=relu"), D_IN)
    assert memory.held == 14 * PARAMETERS
    assert memory.step == int(4.5 * MATRIX) + 3 * PARAMETERS + ACTIVATIONS


def test_what_is_listed_depends_on_latents_and_engine() -> None:
    listed = of_run(config_of("method=mutual_choice"), D_IN)
    few = of_run(config_of("method=mutual_choice", "d_sae=8192"), D_IN)
    dense = of_run(config_of("method=mutual_choice", "engine=dense"), D_IN)
    many = of_run(config_of("method=mutual_choice", "k=4096"), D_IN)
    assert few.step > listed.step and dense == many
    assert dense.step > 5 * listed.step and dense.held > listed.held
    assert (
        of_run(config_of("method=mutual_choice", "d_sae=8192", "engine=sparse"), D_IN).step
        < few.step
    )


def test_in_float32_no_weight_is_rounded() -> None:
    memory = of_run(config_of("method=topk", "training.precision=float32"), D_IN)
    assert memory.held == 12 * PARAMETERS
    assert memory.step == MATRIX + 6 * PARAMETERS + ACTIVATIONS


def test_an_architecture_that_does_not_tell_is_taken_for_a_large_one() -> None:
    config = config_of("method=relu")
    node: dict[str, Any] = {"_target_": "sae_sweeps.architecture.weights.create"}
    config = replace(config, nodes={**config.nodes, "architecture": node})
    assert of_run(config, D_IN).step == pytest.approx(
        UNKNOWN[False].matrices * MATRIX + 3 * PARAMETERS + ACTIVATIONS, rel=1e-9
    )


# --- Packs ---------------------------------------------------------------------------------


def test_a_pack_by_hand() -> None:
    """What runs hold adds up; of their steps there is one at a time, and one model."""
    runs = [small_run(Path(), *GPT2, f"method={name}") for name in ("topk", "relu")]
    width = 128  # of the embedded model
    own = [of_run(run.config, width) for run in runs]
    chunks = 4 * width * (3 * 32_768 + 1024)
    model = 4 * (4 * 12 * 128**2 + (4096 + 128) * 128)  # 4 blocks, embeddings, positions
    model += 4 * 4096 * 256 + 4 * 4096 * 256  # log probabilities of ce_tokens, and their logits
    expected = CONTEXT + own[0].held + own[1].held + own[1].peak + chunks + model
    assert own[1].peak > own[0].peak and of_pack(runs) == expected
    assert fitting(expected * 100 // 84)(runs) and not fitting(expected * 100 // 86)(runs)
    assert fitting(None)(runs)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["target_model=synthetic"], 128),
        (["target_model.hook=blocks.0.hook_resid_pre"], 128),
        (["target_model.hook=blocks.1.hook_mlp_out"], 128),
        (["target_model.hook=blocks.1.mlp.hook_post"], 512),
        (["target_model.hook=blocks.1.attn.hook_z"], None),
    ],
)
def test_a_width_is_told_by_files_alone(words: list[str], expected: int | None) -> None:
    run = small_run(Path(), *words)
    assert width_of(run.config) == expected
    if expected is None:  # nothing is divided for what is not known
        assert of_pack([run]) is None and fitting(1)([run])


def test_a_width_is_that_of_the_activations_in_a_file(tmp_path: Path) -> None:
    acts = torch.zeros(3, 5, 7)
    np.save(tmp_path / "a.npy", acts.numpy())
    save_file({"a": acts}, tmp_path / "a.safetensors")
    (tmp_path / "b.npy").write_bytes(b"no array")
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 20)
    found = {path.name: facts.width_of_file(str(path)) for path in tmp_path.iterdir()}
    assert found == {"a.npy": 7, "a.safetensors": 7, "b.npy": None, "b.safetensors": None}


@pytest.mark.parametrize(
    ("given", "expected"), [("80G", 80e9), ("1.5T", 1.5e12), ("512 MiB", 512e6), (None, None)]
)
def test_sizes(given: str | None, expected: float | None) -> None:
    assert gpu_bytes(given) == expected


@pytest.mark.parametrize("given", ["80", "", "G", "-80G", "0G", "80K", "80G\n\n", "1e9G"])
def test_what_is_no_size_is_refused_by_name(given: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra.launcher.gpu_memory is .*expected a size"):
        gpu_bytes(given)


@pytest.mark.parametrize(
    ("devices", "told", "expected"),
    [
        (["0", "1"], "40000\n30000\n", 30_000 * 2**20),
        (["0", "0"], "40000\n40000\n", 20_000 * 2**20),
        (["MIG-1"], "No devices were found", None),
        ([None], "40000\n", None),
    ],
)
def test_free_memory_is_that_of_the_device_with_least(
    devices: list[str | None],
    told: str,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{told}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workers.free_bytes(devices) == expected
    tool.unlink()
    assert workers.free_bytes(devices) is None
