"""tests/gpu/pack, and a rehearsal of tests/gpu/run: every part, at toy sizes, on a CPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from . import agenda, process, wheels
from .agenda import PARTS
from .checkout import checkout
from .commands import PACK, RUN, command
from .figures import Figures
from .installed import installed
from .runs import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gpu_run")]

ON_CUDA_ALONE = {
    agenda.OFF_MEMORY,
    agenda.OFF_TIME,
    "a captured token step of 2,048 latents over an eager one",
}
"""Goals that a CPU has no figure for."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "wheels"
    ended = command(PACK, "--into", folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def rehearsal(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The document and the table."""
    out = tmp_path_factory.mktemp("rehearsal")
    ended = command(RUN, "--rehearse", "--wheels", packed, OUT=str(out))
    assert ended.returncode == 0, ended.stderr
    document = json.loads((out / "gpu.json").read_text())
    assert ended.stdout.startswith((out / "gpu.txt").read_text())
    return document, ended.stdout


def test_wheels_are_few_and_installed_apart(packed: Path, tmp_path: Path) -> None:
    told = json.loads((packed / wheels.PACKED).read_text())
    assert told["wheels"] == sorted(path.name for path in packed.rglob("*.whl"))
    assert told.get("commit") == checkout().get("commit")
    folders = installed(packed, tmp_path)
    versions = {
        kind: next(folder.glob("transformer_lens-*.dist-info")).name
        for kind, folder in folders.items()
    }
    assert versions["ours"] > "transformer_lens-4" > versions["peers"]


def test_every_part_is_rehearsed(rehearsal: tuple[Any, str]) -> None:
    document, _ = rehearsal
    assert document["rehearsal"]
    assert [part["name"] for part in document["parts"]] == [part.name for part in PARTS]
    for part in document["parts"]:
        errors = [row for row in part["figures"] if "error" in row]
        assert part["state"] == process.DONE, (part.get("error"), errors)
        assert part["figures"] and "not_figures" not in part, part


def test_every_goal_finds_its_figure(rehearsal: tuple[Any, str]) -> None:
    document, printed = rehearsal
    wanted = [goal.text for part in PARTS for goal in part.goals]
    assert [goal["goal"] for goal in document["goals"]] == wanted
    assert {goal["goal"] for goal in document["goals"] if goal["figure"] is None} == ON_CUDA_ALONE
    assert {goal["verdict"] for goal in document["goals"]} == {"not judged"}
    for text in (*wanted, "rehearsal", agenda.KERNELS):
        assert text in printed


def test_every_method_and_peer_is_timed(rehearsal: tuple[Any, str]) -> None:
    figures = Figures({part["name"]: part["figures"] for part in rehearsal[0]["parts"]})
    for method in METHODS:
        rows = figures.rows("steps", method=method, aux=agenda.AS_CONFIGURED)
        assert len(rows) == 3
        assert all(row["ms"] > 0 and row["kernels"] > 0 and row["bfloat16"] for row in rows)
    dead = [row["dead"] for row in figures.rows("steps") if "dead" in row["aux"]]
    assert len(dead) == 3 and min(dead) > 0
    for peer in agenda.PEERS:
        assert {row["autocast"] for row in figures.rows("peers", peer=peer)} == {True, False}
    assert figures.one("sweep", "runs", what="12 runs") == 12
