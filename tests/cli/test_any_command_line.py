"""Any command line either runs or is refused in one clear line, and then has written nothing."""

import re
import signal
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.command_lines import LINES, Line
from tests.support.fork_server import ROOT
from tests.support.launches import Launches, launches
from tests.support.option_values import options

__all__ = ["launches"]  # a fixture

EXAMPLES = 200
SHORTEST, LONGEST = 30, 420
PROGRESS = re.compile(r" *\d+ %, ")
INTERNALS = ("Traceback", "<class", "omegaconf.errors", "object at 0x", "Warning", "Exception")


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it left."""

    words: tuple[str, ...]
    code: int
    """The exit code; less the signal's number if one ended it."""
    out: str
    err: str
    files: tuple[str, ...]
    """What lies in the folder that it ran in, and beside it."""


class Anywhere:
    """Runs each command in an empty folder, beside a file of activations."""

    def __init__(self, launches: Launches, scratch: Path) -> None:
        self.launches, self.scratch, self.count = launches, scratch, 0
        self.env = {
            **{"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(scratch)},
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
        }

    def run(self, *words: str) -> Ended:
        """Run `sae-sweeps WORDS`."""
        home = self.scratch / str(self.count)
        self.count += 1
        launch = self.launches.run(home, *words, cwd="empty", env=self.env, limited=True)
        files = [str(path.relative_to(home)) for path in home.rglob("*")]
        left = [name for name in files if name != "empty" and not name.startswith(("out-", "err-"))]
        assert launch.code is not None
        return Ended(words, launch.code, launch.out, launch.err, tuple(left))


@pytest.fixture(scope="module")
def anywhere(launches: Launches, tmp_path_factory: pytest.TempPathFactory) -> Anywhere:
    """A place for commands beside a file of activations."""
    scratch = tmp_path_factory.mktemp("any")
    acts = np.random.default_rng(0).standard_normal((2000, 8)).astype("f4")
    np.save(scratch / "acts.npy", acts)
    return Anywhere(launches, scratch)


def tiny(words: tuple[str, ...], scratch: Path) -> list[str]:
    """The options that make a run tiny, but for those that `words` give."""
    options = {
        "target_model": "activations",
        "target_model.path": str(scratch / "acts.npy"),
        "d_sae": 32,
        "k": 2,
        "stream.batch_tokens": 64,
        "stream.chunk_tokens": 128,
        "stream.calibration_tokens": 64,
        "training.tokens": 1024,
        "evaluation.tokens": 64,
        "evaluation.ce_tokens": 64,
        "tracking": "off",
        "hydra.launcher.progress": "off",
        "device": "cpu",
    }
    given_keys = {word.partition("=")[0].lstrip("+~") for word in words}
    if "target_model" in given_keys and "target_model=activations" not in words:
        del options["target_model.path"]
    return [f"{key}={value}" for key, value in options.items() if key not in given_keys]


def run(line: Line, anywhere: Anywhere) -> Ended:
    """Run a line in its own folder, with tiny options in front."""
    first = line.words[0] if line.words else ""
    alone = "=" not in first and first[:1] not in ("-", "+", "~")  # a verb stands first
    words = tiny(line.words, anywhere.scratch)
    return anywhere.run(*line.words, *words) if alone else anywhere.run(*words, *line.words)


def judge(line: Line, ended: Ended) -> str:
    """Say what became of a line: it `ran`, `failed` in training, was `refused`, or `told`.

    Or it was still training when its time was up, as it may with billions of tokens: `endless`.
    """
    said = [text for text in ended.err.splitlines() if text.strip()]
    assert "Traceback" not in ended.out + ended.err
    if ended.code == -signal.SIGALRM and ended.files and not (line.sound or line.culprit):
        return "endless"
    assert ended.code in (0, 1, 2), "ended by a signal"
    if ended.code == 1:
        return _refused(line, ended, [text for text in said if not PROGRESS.match(text)])
    assert line.culprit is None, "ran in spite of its mistake"
    if ended.code == 2:
        assert any(" failed: " in text for text in said) and ended.files
        assert all(len(text) <= LONGEST for text in said)
        return "failed"
    return "ran" if ended.files else "told"


def _refused(line: Line, ended: Ended, said: list[str]) -> str:
    assert not line.sound, "refused in spite of being sound"
    assert len(said) == 1 and SHORTEST <= len(said[0]) <= LONGEST, "not one line"
    asked = any(word.startswith(("-i", "--info")) for word in line.words)  # told before refusing
    assert (asked or ended.out == "") and ended.files == (), "said or wrote something"
    assert not any(word in said[0] for word in INTERNALS), "speaks of the inside"
    if line.culprit is not None:
        assert line.culprit in said[0], "does not name the mistake"
    return "refused"


@pytest.mark.slow
def test_any_command_line_runs_or_is_refused_in_one_line(anywhere: Anywhere) -> None:
    outcomes: Counter[str] = Counter()

    @cache  # what was drawn before would end as before
    def outcome(line: Line) -> str:
        return judge(line, run(line, anywhere))

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(LINES)
    def check(line: Line) -> None:
        outcomes[outcome(line)] += 1

    options()  # read now: checks of types draw random numbers, which no strategy may do
    check()
    assert outcomes["ran"] >= EXAMPLES // 4, outcomes
    assert outcomes["refused"] >= EXAMPLES // 3, outcomes
    assert outcomes["failed"] >= 1 and outcomes["told"] >= 1, outcomes
    assert outcomes["endless"] <= EXAMPLES // 100, outcomes
