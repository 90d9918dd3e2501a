"""tests/gpu/pack: what may not be carried is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from . import wheels


@pytest.mark.parametrize("name", ["large", "foreign"])
def test_wheels_that_cannot_be_carried_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was gathered before stays."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "old").touch()

    def downloaded(verb: str, into: Path, words: Sequence[str]) -> None:
        assert words
        tag = "py3-none-any" if name == "large" else "cp312-cp312-linux_x86_64"
        (into / f"{verb}-1.0-{tag}.whl").write_bytes(bytes(100))

    monkeypatch.setattr(wheels, "_pip", downloaded)
    monkeypatch.setattr(wheels, "MOST_BYTES", 50 if name == "large" else 10**6)
    with pytest.raises(wheels.Unpacked, match="allowed" if name == "large" else "Python alone"):
        wheels.pack(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]
    assert [path.name for path in folder.iterdir()] == ["old"]
