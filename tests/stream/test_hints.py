"""What is said of activations that something other than their text rules."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_sweeps.stream.hints import hints
from tests.stream.test_left_out import options
from tests.support.small import small_run, train


def plain() -> Tensor:
    return torch.randn(20_480, 16, generator=torch.Generator().manual_seed(0))


def far() -> Tensor:
    """The mean's squared norm is three times the variance, 75 % of the whole."""
    return plain() + (3 * torch.ones(16)).sqrt()


def one_dimension() -> Tensor:
    """Dimension 5 has 60 times the variance of each of 15 others: 80 %."""
    acts = plain()
    acts[:, 5] *= 60**0.5
    return acts


def a_few_tokens() -> Tensor:
    """One token of 1,024 has 40 times the norm: 1,600 parts of 2,623, about 61 %."""
    acts = plain()
    acts[:20] *= 40
    return acts


@pytest.mark.parametrize(
    ("acts", "given", "expected"),
    [
        (plain(), {}, []),
        (far(), {}, ["the mean makes up 75% .*: stream.centre=true"]),
        (far(), {"centre": True}, []),
        (one_dimension(), {}, ["dimension 5 has (79|80|81)% of"]),
        (a_few_tokens(), {}, [r"20 of 20480 tokens have (5[5-9]|6[0-7])% .*: stream.max_norm=10"]),
        (a_few_tokens(), {"max_norm": 100.0}, []),
        (torch.zeros(10, 3), {}, []),
        (torch.ones(10, 3), {}, ["the mean makes up 100%"]),
        (torch.eye(3), {}, []),
    ],
)
def test_what_rules_activations_is_said_in_a_line(
    acts: Tensor, given: dict[str, Any], expected: list[str]
) -> None:
    found = list(hints(acts, options(**given)))
    assert len(found) == len(expected), found
    for text, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, text), text


def test_a_run_says_it_in_its_log_and_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "acts.npy", far().numpy())
    path = f"target_model.path={tmp_path / 'acts.npy'}"
    run = small_run(tmp_path, "target_model=activations", path, "stream.centre=false")
    train(run)
    said = "the mean makes up 75% of the activations' mean squared norm"
    assert f"activations: {said}" in caplog.text
    log = run.files.log.read_text()
    assert said in log and "held-out tokens left out: 0" in log
