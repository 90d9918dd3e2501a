"""The manifest: launches that extend and replace each other, and what is no manifest."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.errors import ConfigError
from sae_sweeps.record import manifest
from sae_sweeps.record.manifest import Pack
from sae_sweeps.record.plan import Plan
from tests.support.fabricate import launch, sweep, write


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    packs = [Pack("1-0", ["s0", "s1"], None), Pack("1-1", ["s2"], "12_1")]
    launch(tmp_path / "a", [0, 1, 2], packs)
    found = manifest.read(tmp_path / "a")
    assert (found.name, found.runs) == ("a", ["s0", "s1", "s2"])
    assert [point.config.seed for point in found.points] == [0, 1, 2]
    assert [point.overrides for point in found.points] == [["seed=0"], ["seed=1"], ["seed=2"]]
    [only] = found.launches
    assert (only.host, only.pid) == (socket.gethostname(), os.getpid())
    assert only.packs == packs and only.launcher == {"_target_": "x.Y"}
    assert only.command and only.time
    assert {"torch", "python"} <= set(stored(tmp_path / "a")["packages"])


def test_job_ids_replace_the_launch_that_got_them(tmp_path: Path) -> None:
    sweep(tmp_path, [None])
    plan = Plan("a", tmp_path, [], [], {}, [], [])
    manifest.write(plan, [Pack("2-0", ["s0"], None)], {})
    before = stored(tmp_path)
    manifest.write(plan, [Pack("2-0", ["s0"], "7")], {"partition": "gpu"})
    after = stored(tmp_path)
    packs = [pack for launch in manifest.read(tmp_path).launches for pack in launch.packs]
    assert [pack.job for pack in packs] == [None, "7"]
    assert after.pop("packs") != before.pop("packs")
    assert (after.pop("launcher"), before.pop("launcher")) == ({"partition": "gpu"}, {})
    assert after == before


def test_every_new_launch_is_kept_even_within_one_process(tmp_path: Path) -> None:
    for number in range(1, 4):
        assert manifest.next_launch(tmp_path) == number
        launch(tmp_path, [number], [Pack(f"{number}-0", [f"s{number}"], None)])
    found = manifest.read(tmp_path)
    assert [launch.packs[0].name for launch in found.launches] == ["1-0", "2-0", "3-0"]
    assert found.runs == ["s1", "s2", "s3"]


def test_a_runs_pack_is_that_of_the_last_launch_that_planned_it(tmp_path: Path) -> None:
    sweep(tmp_path, ["1_0", "1_1", None])
    launch(tmp_path, [1], [Pack("2-0", ["s1"], "2")])
    found = manifest.read(tmp_path)
    packs = [found.pack_of(f"s{i}") for i in range(4)]
    assert [pack and (pack.name, pack.job) for pack in packs] == [
        ("1-0", "1_0"),
        ("2-0", "2"),
        ("1-2", None),
        None,
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is not a sweep's folder: it has no sweep.json."),
        ('{"version": 1}', "has version 1, expected 3."),
        ('{"version": 2, "na', "is not JSON"),
        ("[]", "is not JSON"),
        ('{"version": 2, "points": [], "earlier": []}', "is not a manifest: it lacks 'packs'"),
        ('{"version": 2, "points": 3, "earlier": []}', "is not a manifest"),
    ],
)
def test_what_is_no_manifest_is_told_in_one_line(
    tmp_path: Path, content: str | None, complaint: str
) -> None:
    if content is not None:
        write(tmp_path / "sweep.json", content)
    with pytest.raises(ConfigError) as raised:
        manifest.read(tmp_path)
    assert complaint in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_that_is_a_file_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a sweep's folder"):
        manifest.read(write(tmp_path / "file", "x"))


def test_a_manifest_of_another_version_is_not_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "sweep.json", '{"version": 1}')
    with pytest.raises(ConfigError, match="has version 1"):
        sweep(tmp_path, [None])
    with pytest.raises(ConfigError, match="has version 1"):
        manifest.next_launch(tmp_path)
    assert path.read_text() == '{"version": 1}'


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/v/bin/python3", "/v/bin/sae-sweeps", "-m", "k=4,8"], "sae-sweeps -m k=4,8"),
        (["/v/bin/python3", "-m", "sae_sweeps", "name=a b"], "python3 -m sae_sweeps 'name=a b'"),
        (["/v/bin/python3", "-c", "x", "a/sae-sweeps"], "python3 -c x a/sae-sweeps"),
    ],
)
def test_a_command_is_kept_as_it_is_typed(argv: list[str], words: str) -> None:
    assert manifest.typed(argv) == words
