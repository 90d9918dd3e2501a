"""`kill -9` at random moments costs no weight, no row, and no row of W&B's."""

import random
from pathlib import Path

import pytest

from tests.benchmarks.kills import WORDS, killed, undisturbed
from tests.support.slow_model import SLOW_TARGET

TWO_RUNS = (
    *(*SLOW_TARGET, "k=8", "training.log_every_tokens=512", "checkpoint_minutes=0.002"),
    "training.tokens=32768",
)


@pytest.mark.slow
def test_five_kills_leave_what_no_kill_leaves(tmp_path: Path) -> None:
    words = [*WORDS, *TWO_RUNS]
    expected = undisturbed(tmp_path / "undisturbed", words)
    outcome = killed(tmp_path / "killed", words, expected, random.Random(0), 5, 1.0)
    assert len(outcome.kills) >= 3, outcome.kills
    assert len(outcome.rows) == 2 and all(row.expected > 0 for row in outcome.rows)
    assert outcome.well, outcome
