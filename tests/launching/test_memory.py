"""What runs are planned to take of an accelerator's memory, against arithmetic by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.config.options import RunConfig
from sae_sweeps.launching.memory import UNKNOWN, of_run
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
        UNKNOWN * MATRIX + 3 * PARAMETERS + ACTIVATIONS, rel=1e-9
    )
