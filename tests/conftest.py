"""What all tests share: nothing leaves the machine, and in CI no test is skipped unseen."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np
import pytest
import torch
from hydra._internal.config_repository import ConfigRepository
from hypothesis import settings
from numpy.typing import NDArray

from tests.support import shapes
from tests.support.option_files import load_config
from tests.support.places import ROOT

torch.set_num_threads(1)

# A busy machine is no reason to fail an example.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_configure() -> None:
    """Calls are checked where shapes are told."""
    files = (ROOT / "sae_sweeps").rglob("*.py")
    paths = [path.relative_to(ROOT) for path in files if "jaxtyping" in path.read_text()]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert not set(modules) & set(sys.modules), "imported before"
    shapes.check(modules)


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No W&B key or setting of the developer reaches a test."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield


@pytest.fixture(scope="session", autouse=True)
def text_unpacked_once() -> Iterator[None]:
    """The embedded text stays in memory: to unpack it is a third of what a small run costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_sweeps.data.embedded.load_tokens", cache(_kept))
        yield


def _kept(split: Literal["train", "held_out"]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """What many runs share, and none can change."""
    from sae_sweeps.embedded import load_tokens

    ids, starts = load_tokens(split)
    ids.flags.writeable = starts.flags.writeable = False
    return ids, starts


@pytest.fixture(scope="session", autouse=True)
def option_files_read_once() -> Iterator[None]:
    """To parse Hydra's option files is a quarter of what a refused command costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_config)
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With SAE_SWEEPS_NO_SKIPS set, a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("SAE_SWEEPS_NO_SKIPS") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
