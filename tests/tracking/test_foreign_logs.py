"""A sweep's W&B logs may be anybody's: none of them has W&B upload what is not the sweep's."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.cli import commands
from sae_sweeps.tracking.wandb import log_format, places
from tests.support.commands import write
from tests.support.places import ROOT
from tests.support.wandb_backend import Backend
from tests.support.wandb_sweeps import TRACKING, Sweep, Uploaded, backend, home, served, uploaded

__all__ = ["backend", "home", "uploaded"]  # fixtures
pytestmark = pytest.mark.slow

SECRET = "of the user's own, and nobody else's"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's own."""
    write(tmp_path / "own/secret", SECRET)
    return tmp_path / "own/secret"


def respelled(log: Path, change: Callable[[Any], object]) -> None:
    """Change the records of a log, which stays whole."""
    records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, payloads = log.read_bytes(), list[bytes]()
    for _, payload in log_format.whole_records(content):
        record = records.Record.FromString(payload)
        change(record)
        payloads.append(record.SerializeToString())
    log.write_bytes(log_format.written(payloads, content[: log_format.FILE_HEAD]))


def uploads(backend: Backend) -> str:
    """All files that the server got."""
    return " ".join(str(text) for run in backend.runs.values() for text in run.uploads.values())


def named_file(path: str) -> Callable[[Any], object]:
    def change(record: Any) -> None:
        for file in record.files.files:
            file.path = path

    return change


def named_folder(record: Any) -> None:
    if record.HasField("exit"):
        record.tbrecord.log_dir = record.tbrecord.root_dir = "/etc"
        record.tbrecord.save = True


def named_manifest(record: Any) -> None:
    if record.HasField("artifact"):
        record.artifact.manifest.manifest_file_path = "/etc/passwd"


def other_run(record: Any) -> None:
    if record.HasField("run"):
        record.run.run_id = "another-of-the-users"


def no_number(record: Any) -> None:
    for item in record.history.item:
        item.value_json = "{"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (named_file("../../../../own/secret"), "it names '../../../../own/secret'"),
        (named_file("/etc/passwd"), "it names '/etc/passwd'"),
        (named_folder, "it names a folder of TensorBoard's"),
        (named_manifest, "it names '/etc/passwd'"),
        (other_run, "which run it is of is not what it is called after"),
    ],
)
def test_a_log_that_names_what_is_not_its_own_is_left_and_the_others_go(
    change: Callable[[Any], object],
    said: str,
    tmp_path: Path,
    secret: Path,
    backend: Backend,
    uploaded: Uploaded,
) -> None:
    sweep = Sweep(tmp_path / "sweep", 1)
    sweep.train(5)
    sweep.summarise()
    [summary] = sweep.logs("summary")
    respelled(summary, change)
    for _ in range(2):
        code, line, (complaint,) = uploaded(sweep.folder)
        assert (code, line.count("1 failed")) == (1, 1)
        assert said in complaint and str(summary)[:40] in complaint
    assert set(backend.runs) == {sweep.id()}
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    assert SECRET not in uploads(backend) and secret.read_text() == SECRET


def test_a_record_that_is_no_record_is_told_in_a_line(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep", 2)
    sweep.train(5, 5)
    [log] = sweep.logs("s0")
    respelled(log, no_number)
    code, _, (complaint,) = uploaded(sweep.folder)
    assert code == 1 and "is not as W&B writes it" in complaint
    assert sweep.id(1) in backend.runs


def test_files_of_tables_come_from_the_sweeps_folder_alone(
    tmp_path: Path, secret: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.summarise()
    [log] = sweep.logs("summary")

    def change(record: Any) -> None:
        for entry in record.artifact.manifest.contents:
            entry.local_path = str(secret)

    respelled(log, change)
    code, _, (complaint,) = uploaded(sweep.folder)
    assert code == 1 and f"files of its tables are gone, as {secret}" in complaint
    assert SECRET not in uploads(backend)


def test_a_copy_takes_tables_from_itself_though_the_original_is_there(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.summarise()
    copy = tmp_path / "copy"
    shutil.copytree(sweep.folder, copy, symlinks=True)
    for path in sweep.folder.glob("wandb/.data/**/*"):
        if path.is_file():
            path.write_text('{"columns": [], "data": []}')
    code, _, complaints = uploaded(copy)
    assert (code, complaints) == (0, [])
    [run] = backend.runs.values()
    table = json.loads(run.uploads[run.summary["runs"]["path"]])
    assert table["data"][0] == ["s0", 7.5]


def test_the_tracker_is_the_packages_own(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What W&B lacks of a run is told, and nothing is built that the folder names for it."""
    sweep = Sweep(tmp_path / "sweep", 1)
    sweep.train(5)
    for log in sweep.logs():
        shutil.rmtree(log.parent)
    write(sweep.folder / "wandb/hubconf.py", "import os; os.system('touch PWNED')\ndef f(): ...\n")
    manifest = json.loads((sweep.folder / "sweep.json").read_text())
    named = {"_target_": "torch.hub.load", "repo_or_dir": str(sweep.folder / "wandb"), "model": "f"}
    for point in manifest["points"]:
        point["config"]["tracking"] = {**TRACKING, **named, "source": "local"}
    (sweep.folder / "sweep.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    code, line, complaints = uploaded(sweep.folder)
    assert (code, complaints) == (0, []), line
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("id", ["../../own/secret", "*", "a b", ""])
def test_no_id_leads_to_other_files(
    id: str, tmp_path: Path, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path / "sweep", 1)
    sweep.train(5)
    places.id_file(sweep.run(0).folder).write_text(id)
    capsys.readouterr()
    assert commands.main(["sync", str(sweep.folder)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "which is not the id of a W&B run" in line
    assert not backend.runs


PLANTED = "import os\nos.system('touch {mark}')\nraise RuntimeError\n"
MODULES = ("torch", "json", "IPython", "ipywidgets", "wandb_gql", "sitecustomize", "sae_sweeps")


def test_a_verb_called_in_the_folder_runs_nothing_of_it(tmp_path: Path, backend: Backend) -> None:
    """No module, no package called wandb as its logs are, no git hook, no settings of a plot."""
    sweep, mark = Sweep(tmp_path / "sweep", 2), tmp_path / "PWNED"
    sweep.train(5, 5)
    sweep.summarise()
    for log in sweep.logs("s0"):
        shutil.rmtree(log.parent)  # it is told from the run's folder
    planted = PLANTED.format(mark=mark)
    for name in MODULES:
        write(sweep.folder / f"{name}.py", planted)
    for name in ("wandb", "numpy", "rich"):
        write(sweep.folder / name / "__init__.py", planted)
        write(sweep.folder / name / "__main__.py", planted)
    write(sweep.folder / "matplotlibrc", "backend: module://torch\nbad\x1b]0;key: 1\n")
    run = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "sweep.json"], ["commit", "-qm", "it"]):
        subprocess.run([*run, *words], cwd=sweep.folder, check=True)
    for key in ("core.fsmonitor", "diff.external", "core.sshCommand", "core.pager"):
        subprocess.run(["git", "config", key, f"touch {mark}"], cwd=sweep.folder, check=True)
    (sweep.run(1).folder / "result.json").unlink()  # for retry
    script = "from sae_sweeps.__main__ import main; main()"
    env = {**os.environ, **backend.client(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for verb in ("status", "report", "wait", "cancel", "sync", "dashboard", "retry"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, verb, "."],
            cwd=sweep.folder,
            env=env,
            capture_output=True,
            text=True,
        )
        assert not mark.exists(), verb
        assert "Traceback" not in done.stderr and "\x1b]0" not in done.stderr, done.stderr
        assert done.returncode == (2 if verb == "wait" else int(verb == "retry")), (verb, done)
    assert len(backend.runs) == 3
