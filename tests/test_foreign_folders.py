"""A sweep's folder may be anybody's: nothing in it runs code, or leads out of it.

Each file of a real sweep is spoilt in each way; what a process does is seen by Python's own audit.
"""

import csv
import json
import os
import pickle
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.cli import commands
from sae_sweeps.config.groups import GROUPS
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching import job
from sae_sweeps.launching.packs import thaw
from sae_sweeps.pareto import points
from sae_sweeps.record import checkpoint
from sae_sweeps.record.folder import RunFolder
from tests.support.commands import Trainer, trainer, write
from tests.support.launches import SMALL, SYNTHETIC, Launches, launches
from tests.support.places import ROOT
from tests.support.watching import watched

__all__ = ["launches", "trainer"]  # fixtures

pytestmark = pytest.mark.xdist_group("foreign")

WORDS = [
    *(word for word in SMALL if word != "tracking=off"),
    *(SYNTHETIC, "name=done", "method=topk", "seed=0,1", "stream.seed=0,1"),
    *("training.tokens=2048", "hydra.launcher.workers=2", "checkpoint_minutes=0"),
]
VERBS = ("status", "report", "wait", "cancel", "sync", "dashboard", "retry")
LINE = re.compile(r"sae-sweeps: [^\n]*\n")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
ESCAPES = "a\x1b]0;title\x07\x1b]52;c;cm0=\x07\x9d\u202eb"
"""What sets a terminal's title and the clipboard, and turns a line around."""

Spoil = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def done(launches: Launches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four runs that two processes trained, with W&B's logs."""
    home = tmp_path_factory.mktemp("done")
    launch = launches.run(home, *WORDS)
    assert launch.code == 0, launch.err
    folder = home / "outputs/done"
    (folder / "report.html").unlink()  # large, and nobody reads it
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's own, which stays as it is."""
    folder = tmp_path / "outside"
    write(folder / "secret", "of the user's own\n")
    write(folder / "innocent.py", "raise RuntimeError('imported')\nclass X: ...\n")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "secret": "of the user's own\n",
        "innocent.py": "raise RuntimeError('imported')\nclass X: ...\n",
    }


@pytest.fixture
def shared(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sweep, one run of which has lost its result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return again(done, tmp_path / "shared")


def again(done: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(done, folder, symlinks=True)
    sorted(folder.glob("runs/*/result.json"))[0].unlink()
    return folder


def spoilt(folder: Path, spoil: Spoil, name: str = "sweep.json") -> None:
    path = folder / name
    found = json.loads(path.read_text())
    spoil(found)
    path.write_text(json.dumps(found))


def called(
    capsys: pytest.CaptureFixture[str], outside: Path, *words: object, modules: str = "innocent"
) -> tuple[int, str]:
    """Run a verb in this process; gives its code and its complaint, which is a line."""
    capsys.readouterr()
    with watched(outside, modules) as seen:
        code = commands.main([*map(str, words)])
    said = capsys.readouterr()
    assert seen == []
    assert not CONTROL.search(said.out + said.err), repr(said)
    assert code != 1 or LINE.fullmatch(said.err), said.err
    return code, said.err


# --- Code ----------------------------------------------------------------------------------


def innocent(folder: Path) -> Spoil:
    """A module that runs something when imported, with a class of the right kind."""
    text = "from sae_sweeps.launching.local import Local\nclass X(Local): ...\n"
    write(folder / "innocent.py", f"import os\nos.system('touch PWNED')\n{text}")
    search = {"search_path": [str(folder)], "cwd": str(folder)}
    return lambda found: found.update(
        search | {"launcher": found["launcher"] | {"_target_": "innocent.X"}}
    )


def launched(**node: Any) -> Spoil:
    return lambda found: found.update({"launcher": node})


SLURM = {
    **{"_target_": "sae_sweeps.launching.slurm.Slurm", "partition": None, "account": None},
    **{"qos": None, "constraint": None, "gpus": 0, "cpus": 1, "memory": None, "time": 10},
    **{"signal_delay_s": 60, "array_parallelism": 2, "max_runs_per_pack": 8, "setup": []},
    **{"extra": None, "wait": False, "objective": None, "progress": "off"},
}
LOCAL = {"_target_": "sae_sweeps.launching.local.Local", "objective": None, "progress": "off"}
NO_LAUNCHER = "expected a subclass of PlanLauncher"
LAUNCHERS: dict[str, tuple[Spoil, str]] = {
    "function": (launched(_target_="os.system", command="touch PWNED"), NO_LAUNCHER),
    "process": (launched(_target_="subprocess.Popen", args=["touch", "PWNED"]), NO_LAUNCHER),
    "no launcher": (launched(_target_="sae_sweeps.tracking.off.Off"), NO_LAUNCHER),
    "abstract": (launched(_target_="sae_sweeps.launching.launcher.PlanLauncher"), NO_LAUNCHER),
    "a number": (launched(_target_=3), "hydra.launcher._target_ is 3"),
    "a path": (launched(_target_="sae_sweeps./outside/innocent.X"), NO_LAUNCHER),
    "a module's path": (launched(_target_="/outside/innocent.X"), "there is no module"),
    "option": (launched(**LOCAL | {"workers": "x"}), "hydra.launcher.workers is 'x', expected"),
    "setup": (launched(**SLURM | {"setup": ["touch PWNED"]}), "which jobs would run: read it"),
    "extra": (launched(**SLURM | {"extra": {"srun_args": ["x"]}}), "which jobs would run: read it"),
    "a line more": (launched(**SLURM | {"partition": "a\ntouch PWNED\n"}), "expected one line"),
}


@pytest.mark.parametrize("which", LAUNCHERS)
def test_no_launcher_of_a_folders_choice_runs(
    which: str, shared: Path, outside: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = LAUNCHERS[which]
    spoilt(shared, spoil)
    for verb in ("status", "wait", "cancel", "report"):
        called(capsys, outside, verb, shared)
    code, line = called(capsys, outside, "retry", shared)
    assert code == 1 and expected in line
    assert not trainer.packs and not list(shared.parent.rglob("PWNED"))


@pytest.mark.parametrize("group", [group.name for group in GROUPS])
@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch PWNED"},
        {"_target_": "subprocess.Popen", "args": ["touch", "PWNED"]},
        {"_target_": "torch.hub.load", "repo_or_dir": "shared", "model": "f", "source": "local"},
        {"_target_": "torch.optim.Adam", "params": []},
        {"_target_": "innocent.X"},
    ],
    ids=lambda node: node["_target_"],
)
def test_no_class_of_a_folders_choice_is_built(
    group: str,
    node: dict[str, Any],
    shared: Path,
    outside: Path,
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoil(found: dict[str, Any]) -> None:
        for point in found["points"]:
            point["config"][group] = node
        found["search_path"] = [str(outside)]

    spoilt(shared, spoil)
    code, line = called(capsys, outside, "retry", shared)
    assert code == 1 and line.startswith(f"sae-sweeps: {group}._target_ is '{node['_target_']}'")
    for verb in ("status", "wait", "cancel"):
        called(capsys, outside, verb, shared)
    assert not trainer.packs and not list(shared.parent.rglob("PWNED"))


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_of_the_folders_is_named_and_not_imported(
    inside: bool,
    shared: Path,
    tmp_path: Path,
    outside: Path,
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Be it where the folder says, or in the folder itself, where the user is by chance."""
    place = shared / "packs" if inside else tmp_path / "elsewhere"
    spoilt(shared, innocent(place))
    if inside:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "path", ["", *sys.path, str(place)])
    code, line = called(capsys, outside, "retry", shared)
    assert code == 1 and "'innocent.X', and there is no module 'innocent'" in line
    assert str(place) in line and "--trust" in line
    assert not trainer.packs and not list(tmp_path.rglob("PWNED"))


def test_what_is_found_where_the_user_is_or_trusted_runs(
    shared: Path,
    tmp_path: Path,
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    for words in ([], ["--trust"]):
        spoilt(shared, innocent(tmp_path / "elsewhere"))
        assert commands.main(["retry", str(shared), *words]) == 0, capsys.readouterr().err
        assert len(trainer.packs) == 1
        trainer.packs.clear()
        sys.path[:] = [path for path in sys.path if "elsewhere" not in path]
        assert sys.modules.pop("innocent")
        sorted(shared.glob("runs/*/result.json"))[0].unlink()
    assert sorted(path.parent.name for path in tmp_path.rglob("PWNED")) == [
        "elsewhere",  # where a trusted one is launched
        tmp_path.name,
    ]


def test_a_relative_path_begins_where_it_did(
    shared: Path, outside: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = "sae_sweeps.target_model.activations.Activations"

    def spoil(found: dict[str, Any]) -> None:
        found["cwd"] = str(outside)
        node = {"_target_": saved, "path": "secret", "held_out_path": None}
        for point in found["points"]:
            point["config"] |= {"target_model": node}
            point["config"]["data"] = {"_target_": "sae_sweeps.data.none.NoData"}

    spoilt(shared, spoil)
    capsys.readouterr()
    assert commands.main(["retry", str(shared)]) == 1
    line = f"target_model.path is 'secret', and the sweep was launched in {outside}: call retry"
    assert line in capsys.readouterr().err
    assert not trainer.packs


def test_packs_name_no_code_and_no_places(shared: Path, outside: Path) -> None:
    [first, *_] = sorted(shared.glob("packs/*-0.json"))
    whole, elsewhere = first.read_text(), shared.parent / "elsewhere"
    kind = "from sae_sweeps.interfaces import Allocator\nclass X(Allocator): ...\n"
    write(elsewhere / "unseen.py", f"raise RuntimeError('imported')\n{kind}")

    def refused(spoil: Spoil, expected: str) -> None:
        first.write_text(whole)
        spoilt(shared, spoil, f"packs/{first.name}")
        with watched(outside, "unseen") as seen, pytest.raises(SystemExit) as ended:
            job.PackJob(first)()
        assert (seen, ended.value.code) == ([], job.REFUSED)
        line = first.with_suffix(".log").read_text().splitlines()[-1]
        assert " ERROR " in line and expected in line, line

    def config(**nodes: Any) -> Spoil:
        return lambda found: found["runs"][0]["config"].update(nodes)

    def searched(found: dict[str, Any]) -> None:
        found["search_path"] = [str(elsewhere)]
        config(allocator={"_target_": "unseen.X"})(found)

    refused(config(allocator={"_target_": "os.system"}), "allocator._target_ is 'os.system'")
    refused(
        config(tracking={"_target_": "torch.hub.load"}), "tracking._target_ is 'torch.hub.load'"
    )
    refused(searched, "there is no module 'unseen'")
    refused(config(d_sae="wide"), "d_sae is 'wide', expected int")
    refused(config(stream=[]), "is not a pack's file")
    for name in ("../../outside", str(outside), ".lock", ""):
        refused(lambda found, name=name: found["runs"][0].update(name=name), "not a name in a fold")
    refused(lambda found: found["runs"][0].pop("choices"), "it lacks 'choices'")
    assert not list(shared.parent.rglob("PWNED"))


# --- Paths ---------------------------------------------------------------------------------


def test_no_link_is_followed_out_of_the_folder(
    shared: Path, outside: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever file or folder of it is one, but for W&B's links to its own logs."""
    places = [path for path in sorted(shared.rglob("*")) if "logs" not in path.parts]
    assert len(places) > 80
    for path in places:
        kept = path.with_name(f"{path.name}.kept")
        path.rename(kept)
        path.symlink_to(outside if kept.is_dir() else outside / "secret")
        for verb in VERBS:
            code, line = called(capsys, outside, verb, shared)
            assert code == 1 and "a link leads out of the sweep's folder, " in line
        path.unlink()
        kept.rename(path)
    assert not trainer.packs


@pytest.mark.parametrize(
    "to", [None, "{outside}/not-there", "../../../outside/secret", "failed.json"]
)
def test_what_is_neither_file_nor_folder_is_refused(
    to: str | None, shared: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe, at which reading would wait, a link to nothing, a relative one, one to itself."""
    path = sorted(shared.glob("runs/*"))[0] / "failed.json"
    if to is None:
        os.mkfifo(path)
    else:
        path.symlink_to(to.format(outside=outside))
    for verb in VERBS:
        code, line = called(capsys, outside, verb, shared)
        assert code == 1 and "failed.json " in line and "remove it" in line


def test_links_within_the_folder_and_above_it_are_good(shared: Path) -> None:
    shared.rename(shared.parent / "real")
    shared.symlink_to("real")
    run = sorted(shared.glob("runs/*"))[0]
    (run / "metrics.jsonl").rename(run / "kept")
    (run / "metrics.jsonl").symlink_to("kept")
    assert commands.main(["status", str(shared)]) == 0


def test_a_folder_that_cannot_be_looked_into_is_refused(
    shared: Path, outside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link in it could be opened all the same."""
    closed, scandir = shared / "runs", os.scandir

    def closing(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closing)
    code, line = called(capsys, outside, "status", shared)
    assert code == 1 and f"cannot read {closed}: Permission denied" in line


@pytest.mark.parametrize("name", ["wandb/settings", ".wandb/settings", "runs/wandb/settings"])
def test_no_folder_says_where_the_key_goes(
    name: str, shared: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(shared / name, "[default]\nbase_url = http://127.0.0.1:9\n")
    for verb in VERBS:
        code, line = called(capsys, outside, verb, shared)
        assert code == 1 and f"{name} says which server gets your W&B key" in line


def test_a_launch_into_the_folder_is_refused_alike(
    shared: Path, outside: Path, launches: Launches, tmp_path: Path
) -> None:
    (tmp_path / "outputs").mkdir()
    shared.rename(tmp_path / "outputs/done")
    lost = next(tmp_path.glob("outputs/done/runs/*/metrics.jsonl"))
    lost.unlink()
    lost.symlink_to(outside / "secret")
    stock = [*(word for word in WORDS if "hydra.launcher" not in word), "hydra/launcher=basic"]
    for words, code in ((WORDS, 1), ([*WORDS, "force=true"], 1), (stock, 2)):
        launch = launches.run(tmp_path, *words)
        assert launch.code == code and "/outside/secret: put what is there" in launch.err
        assert words is stock or LINE.fullmatch(launch.err)  # Hydra's own says more


NAMES = ("../../../outside", "/etc/passwd", "..", "", ".lock", "a\x1b]0;b", "x" * 300, 3, None)
JOBS = ("--user=root", "../../outside", "1_2_3", "", "1;2", 12)
MANIFEST: dict[str, tuple[Callable[[dict[str, Any], Any], object], tuple[Any, ...]]] = {
    "run": (lambda found, name: found["points"][0].update(run=name), NAMES),
    "run of a pack": (lambda found, name: found["packs"][0].update(runs=[name]), NAMES),
    "pack": (lambda found, name: found["packs"][0].update(name=name), NAMES),
    "job": (lambda found, name: found["packs"][0].update(job=name), JOBS),
}


@pytest.mark.parametrize("what", MANIFEST)
def test_no_name_leads_out_of_the_folder(
    what: str, shared: Path, outside: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, names = MANIFEST[what]
    whole = (shared / "sweep.json").read_text()
    for name in names:
        (shared / "sweep.json").write_text(whole)
        spoilt(shared, lambda found, name=name: spoil(found, name))
        for verb in VERBS:
            code, line = called(capsys, outside, verb, shared)
            if verb != "report":  # which reads what the runs' folders hold
                assert code == 1 and "sweep.json is not a manifest: " in line, (name, verb, line)
    assert not trainer.packs


def test_a_runs_folder_with_a_name_of_controls_is_refused(
    shared: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sorted(shared.glob("runs/*"))[0].rename(shared / "runs" / f"{ESCAPES}")
    code, line = called(capsys, outside, "report", shared)
    assert code == 1 and "is not a name in a folder" in line, line


# --- Every word of every file --------------------------------------------------------------


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where JSON has texts and numbers; of a list's items, those of the first."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from leaves(item, (*path, key))
    elif isinstance(node, list):
        for item in node[:1]:
            yield from leaves(item, (*path, 0))
    else:
        yield path


def put(node: Any, path: tuple[Any, ...], value: str) -> None:
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value


def variants(path: Path, outside: Path) -> Iterator[str]:
    """Spoil each text and number of a JSON file: escapes, and a class or a path; tells which."""
    whole = path.read_text()
    places = list(leaves(json.loads(whole)))
    assert len(places) > 60
    others = ("os.system", "innocent.X", str(outside / "secret"), "../../outside")
    for number, place in enumerate(places):
        for value in others if "_target_" in place else (ESCAPES, others[number % len(others)]):
            content = json.loads(whole)
            put(content, place, value)
            path.write_text(json.dumps(content))
            yield f"{place}: {value}"
    path.write_text(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verbs"), [("sweep.json", ["status", "retry"]), ("result.json", ["status"])]
)
def test_whatever_a_file_says_a_verb_does_its_work_or_refuses_in_a_line(
    name: str,
    verbs: list[str],
    shared: Path,
    outside: Path,
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoilt(shared, lambda found: found["launcher"].update(workers=None))
    path = next(path for path in sorted(shared.rglob("*.json")) if path.name == name)
    for _ in variants(path, outside):
        for verb in verbs:
            called(capsys, outside, verb, shared)
        for run in trainer.runs:
            run.files.finished.unlink(missing_ok=True)
        trainer.packs.clear()


@pytest.mark.parametrize("part", ["metrics", "batch", "train", "evaluation", "cost", "tokens"])
def test_figures_are_numbers(part: str, shared: Path) -> None:
    path = sorted(shared.glob("runs/*/result.json"))[0]
    found = json.loads(path.read_text())
    name = {"cost": "seconds", "tokens": "tokens"}.get(part) or next(iter(found[part]))
    put(found, (part, name) if part != "tokens" else (part,), ESCAPES)
    path.write_text(json.dumps(found))
    [failure] = points.read(shared).failures.values()
    assert failure.startswith("unreadable: its ") and "expected a number" in failure


def test_whatever_a_pack_says_it_is_data(shared: Path, outside: Path) -> None:
    [path, *_] = sorted(shared.glob("packs/*-0.json"))
    refused = 0
    for which in variants(path, outside):
        with watched(outside, "innocent") as seen:
            try:
                assert all(run.folder.parent == shared / "runs" for run in thaw(path).runs), which
            except ConfigError as error:
                refused += 1
                assert not CONTROL.search(str(error)), which
        assert seen == [], which
    assert refused > 30


ODD: dict[str, tuple[str, ...]] = {
    "runs/*/failed.json": (
        json.dumps({"error": ESCAPES, "tokens": 1}),
        '{"error": {"a": 1}}',
        "[]",
    ),
    "runs/*/metrics.jsonl": (json.dumps({"tokens": 1, ESCAPES: ESCAPES, "train/l0": ESCAPES}),),
    "runs/*/run.log": (ESCAPES,),
    "runs/*/config.yaml": ("!!python/object/apply:os.system ['touch PWNED']\n",),
    "runs/*/overrides.yaml": ("!!python/object/apply:os.system ['touch PWNED']\n",),
    "runs/*/sae/cfg.json": ('{"_target_": "os.system", "command": "touch PWNED"}',),
    "runs/*/wandb_id.txt": ("../../outside/secret", "*", "", ESCAPES),
    "wandb_id.txt": ("../../outside/secret", "*", "", ESCAPES),
    "wandb_dashboard.txt": ("http://127.0.0.1:9/a?nw=b", ESCAPES),
    "packs/*.log": (ESCAPES,),
    "packs/*.out": (ESCAPES,),
    "packs/*.starts.json": ("[1]", '[{"progress": "x"}]', '{"a": 1}', '"x"'),
    "packs/reported.json": ("[1]", '{"../../outside": 1}', '"x"'),
    "seed_similarity.json": ('{"a": "b"}', "[1]", json.dumps({ESCAPES: 1.0})),
    "pareto.csv": (ESCAPES,),
}
"""What files hold besides texts of ours, by what they are called."""


@pytest.mark.parametrize("pattern", ODD)
def test_whatever_else_a_file_holds(
    pattern: str,
    shared: Path,
    outside: Path,
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    spoilt(shared, lambda found: found["launcher"].update(workers=None))
    lost = next(run for run in sorted(shared.glob("runs/*")) if not (run / "result.json").exists())
    for content in ODD[pattern]:
        paths = sorted(shared.glob(pattern)) or [shared / pattern.replace("*", lost.name)]
        for path in paths:
            path.write_text(content)
        for verb in ("status", "report", "wait", "cancel", "retry"):
            called(capsys, outside, verb, shared)
        for run in trainer.runs:
            run.files.finished.unlink(missing_ok=True)
    assert not list(tmp_path.rglob("PWNED"))


def test_no_file_of_the_folder_is_unthought_of(done: Path) -> None:
    """What a sweep leaves is spoilt above, is W&B's or safetensors', or nobody reads it."""
    thought_of = [*ODD, "sweep.json", "runs/*/result.json", "packs/*-*.json", "wandb/**/*"]
    thought_of += ["runs/*/checkpoint/*.safetensors", "runs/*/sae/*.safetensors", "pareto.png"]
    thought_of += [".lock", "runs/*/.lock", "packs/.report.lock"]
    known = {path for pattern in thought_of for path in done.glob(pattern)}
    left = {path for path in done.rglob("*") if path.is_file()} - known
    assert not {path.relative_to(done).as_posix() for path in left}


# --- What people see -----------------------------------------------------------------------

EVIL = f"={ESCAPES}|calc!A1 [bold red]markup[/bold red] [link=http://evil]x[/link] [/nope]"


@pytest.fixture
def evil(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep whose words all command whatever shows them."""
    monkeypatch.chdir(tmp_path)
    folder = again(done, tmp_path / "shared")
    first, *others = sorted(folder.glob("runs/*/result.json"))
    for path in others:
        found = json.loads(path.read_text())
        found["label"] = EVIL
        found["choices"] = {group: EVIL for group in found["choices"]} | {f"={EVIL}": EVIL}
        found["config"]["architecture"][EVIL] = found["cost"]["device"] = EVIL
        found["metrics"] |= {"=cmd|calc": 1.0, EVIL: 1.0}
        described = {"title": EVIL, "unit": EVIL, "better": "lower", "scale": 1.0}
        column = {"heading": EVIL, "note": EVIL, "form": ".2f"}
        found["measures"] = {EVIL: described | {"panel": None, "column": column}}
        path.write_text(json.dumps(found))
    first.unlink()
    write(first.with_name("failed.json"), json.dumps({"error": EVIL, "tokens": 1}))

    def spoil(found: dict[str, Any]) -> None:
        for key in ("name", "command", "host", "cwd"):
            found[key] = EVIL
        found |= {"git": {"commit": EVIL, "diff": EVIL}, "packages": {EVIL: EVIL}}
        for point in found["points"]:
            point["choices"] = dict.fromkeys(point["choices"], EVIL)

    spoilt(folder, spoil)
    return folder


@pytest.mark.parametrize("verb", ["status", "report", "wait"])
def test_no_text_commands_the_terminal(verb: str, evil: Path) -> None:
    """It is shown, as escapes; rich's own colours are all that is not text."""
    main, terminal = pty.openpty()
    line = [sys.executable, "-c", "from sae_sweeps.__main__ import main; main()", verb, str(evil)]
    with subprocess.Popen(
        line, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT
    ) as shown:
        os.close(terminal)
        said = b""
        with suppress(OSError):  # the terminal's other end is closed
            while part := os.read(main, 1 << 16):
                said += part
    os.close(main)
    assert shown.returncode in (0, 2), said.decode()
    text = (
        re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said.decode()).replace("\r\n", "\n").replace("\r", "")
    )
    assert not CONTROL.search(text), repr(text)
    assert r"\x1b]0;title" in "".join(text.split())


def test_no_text_is_a_spreadsheets_formula(evil: Path) -> None:
    assert commands.main(["report", str(evil)]) == 0
    with (evil / "pareto.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert not [cell for line in lines for cell in line if cell.startswith(("=", "+", "@"))]
    assert not CONTROL.search((evil / "pareto.csv").read_text())


# --- Nothing that can run ------------------------------------------------------------------


class Running:
    """What a pickle may hold."""

    def __reduce__(self) -> Any:
        return subprocess.call, (["touch", "PWNED"],)


def test_no_weights_or_checkpoints_are_unpickled(
    shared: Path, outside: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pickled = pickle.dumps(Running())
    for path in shared.rglob("*.safetensors"):
        path.write_bytes(pickled)
    runs = sorted(shared.glob("runs/*"))
    (runs[0] / "checkpoint/step-000000000001024.safetensors").write_bytes(pickled)
    for verb in ("status", "report", "wait"):
        called(capsys, outside, verb, shared)
    told = list[str]()
    with watched(outside) as seen:
        assert checkpoint.latest(RunFolder(runs[0]), "x", told.append) is None
    assert seen == [] and len(told) == 1 and "is passed over: " in told[0]
    assert not list(tmp_path.rglob("PWNED"))


def test_nothing_of_the_package_reads_what_can_run() -> None:
    """No pickle, no `eval`, no YAML of another kind than OmegaConf's safe one."""
    unsafe = (
        r"\bpickle\b|torch\.load|allow_pickle|joblib|(?<!\.)\beval\(|\bexec\(|yaml\.(unsafe_)?load"
    )
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "sae_sweeps").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(unsafe, line)
    }
    rules = "exec(compile(alone, str(source_of(module)), "
    assert [line.partition('"exec"')[0] for line in found] == [
        f"sae_sweeps/config/source.py: {rules}"
    ], found
