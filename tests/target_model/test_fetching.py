"""A download is told of while it goes, and a model that is here is not."""

import logging
import time
from pathlib import Path

import pytest

from sae_sweeps.target_model import fetching


@pytest.fixture(autouse=True)
def told_often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fetching, "EVERY_S", 0.01)
    caplog.set_level(logging.INFO, "sae_sweeps.target_model")


def lines_come(caplog: pytest.LogCaptureFixture, count: int) -> bool:
    """``caplog.messages`` is made anew at each reading, so it is read here again and again."""
    until = time.monotonic() + 10
    while len(caplog.messages) < count and time.monotonic() < until:
        time.sleep(0.005)
    return len(caplog.messages) >= count


def test_what_comes_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "old").write_bytes(bytes(50_000_000))
    with fetching.told("some/model", tmp_path):
        for part in (1, 2):
            with (tmp_path / "blobs" / "new.incomplete").open("ab") as file:
                file.write(bytes(30_000_000))
            assert lines_come(caplog, part)
        (tmp_path / "link").symlink_to(tmp_path / "blobs" / "old")
    *during, last = caplog.messages
    assert len(during) >= 2
    sizes = [float(line.split()[2]) for line in during]
    assert sizes == sorted(sizes) and sizes[0] > 0 and sizes[-1] <= 0.06
    assert all(line.endswith(" GB of some/model fetched so far") for line in during)
    assert last.startswith("target model: 0.06 GB of some/model fetched in ")


def test_a_model_that_is_here_is_not_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old").write_bytes(bytes(30_000_000))
    with fetching.told("some/model", tmp_path):
        (tmp_path / "refs").write_bytes(bytes(3_000_000))
        time.sleep(0.05)
    assert caplog.messages == []


def test_a_folder_that_is_not_there_yet_may_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OSError, match="the net"), fetching.told("x", tmp_path / "new"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "part").write_bytes(bytes(50_000_000))
        raise OSError("the net")
    assert "fetched in" in caplog.messages[-1]
