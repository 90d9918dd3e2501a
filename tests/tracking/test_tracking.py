"""Tracking: what W&B gets is what the run's files say, and no trouble of W&B's reaches training.

Nothing here can leave the machine: the only server is on the loopback interface.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import wandb
from wandb.sdk import wandb_setup

from sae_sweeps.record.result import Result, Row
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking
from sae_sweeps.tracking.wandb import session
from sae_sweeps.tracking.wandb.tracker import Wandb
from tests.support import fabricate
from tests.support.places import ROOT
from tests.support.small import small_run
from tests.support.unchecked import unchecked
from tests.support.wandb_backend import Backend, ServedRun
from tests.support.wandb_offline import OfflineRun, read, read_all

KEY = "k" * 40
DEAD = "http://127.0.0.1:9"
Mode = Literal["auto", "online", "offline", "disabled"]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give W&B a home of its own, no server and a fresh session."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", DEAD)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        if name not in before:
            del os.environ[name]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Serve W&B on the loopback interface, with a key configured."""
    with Backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield backend
        wandb.teardown()  # while there is still a server to say goodbye to


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Collect what the tracker told the user."""
    above = "sae_sweeps.tracking"
    caplog.set_level(logging.INFO, above)
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith(above)]


def tracker(mode: Mode) -> Wandb:
    return Wandb(project="saes", entity="lab", mode=mode, tags=["mine", "mine", "x" * 80])


def new_run(sweep: Path, index: int) -> Run:
    folder = sweep / "runs" / f"token_choice-k{2**index}-0123abc{index}"
    folder.mkdir(parents=True, exist_ok=True)
    config = fabricate.config(0)
    nodes = config.nodes | {
        "allocator": {"_target_": "sae_sweeps.allocator.TokenChoice", "k": 2**index},
        "deep": {"a": {"b": {"c": {"d": [1, 2.5, None, "x"]}}}},
    }
    config = replace(config, k=float(2**index), name=None, nodes=nodes)
    choices = {"architecture": "relu", "allocator": "token_choice", "aux_loss": "none"}
    choices |= {"target_model": "synthetic", "data": "none", "method": "topk", "tracking": "wandb"}
    return Run(folder.name, sweep.name, folder, config, choices, [])


def rows(index: int, count: int = 30) -> list[Row]:
    return [
        Row(
            4096 * (step + 1),
            {
                "train/loss": 1.0 / (step + index + 3),
                "train/l0": 16.125 + step,
                "train/lr": 5e-324 if step == 0 else 3e-4 * step,
                "features/dead_frac": 0.0,
                "perf/tokens_per_s": 123456.789,
            },
        )
        for step in range(count)
    ]


def result(run: Run, index: int) -> Result:
    return Result(
        label=run.label,
        choices=run.choices,
        config=run.config,
        tokens=4096 * 30,
        metrics={"l0": 15.1 + index, "fvu": 0.1 / 3, "dead_frac": 0.0, "ce_recovered": 0.97},
        batch={"l0": 15.9 + index, "fvu": 0.1 / 7},
        train={"dead_frac": 0.25, "dead_window_tokens": 26214, "l0": 15.0, "fvu": 1e-17},
        cost={"seconds": 1.0, "device": "cpu"},
    )


def train(runs: list[Run], tracking: Tracking, count: int = 30) -> list[float]:
    """Do what a pack does: rows to disk and to the mirrors in turn, then the results.

    Returns:
        Seconds that each call of the tracker took.
    """
    seconds: list[float] = []

    def timed(call: Callable[[], None]) -> None:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)

    mirrors: list[TrackedRun] = [tracking.open(run) for run in runs]
    for step in range(count):
        for index, (run, mirror) in enumerate(zip(runs, mirrors, strict=True)):
            row = rows(index, count)[step]
            with run.files.metrics.open("a") as file:
                file.write(f"{row.line}\n")
            timed(lambda mirror=mirror, row=row: mirror.log(row))
    for index, (run, mirror) in enumerate(zip(runs, mirrors, strict=True)):
        run.files.finish(result(run, index))
        timed(lambda mirror=mirror, run=run: mirror.finish(run.files.result()))
    return seconds


def _json(run: Run, name: str) -> dict[str, Any]:
    return json.loads((run.folder / name).read_text())


def logged(run: Run) -> list[dict[str, Any]]:
    """What the mirror's rows must be, from the run's own file."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [{"tokens_seen": row.pop("tokens"), **row} for row in map(json.loads, lines)]


def finals(run: Run) -> dict[str, Any]:
    """What the mirror's summary must hold, from the run's own file."""
    kept = _json(run, "result.json")
    flat = {f"final/{key}": value for key, value in kept["metrics"].items()}
    flat |= {f"final/batch_{key}": value for key, value in kept["batch"].items()}
    flat |= {f"final/train_{key}": value for key, value in kept["train"].items()}
    flat |= {f"eval/{key}": value for key, value in kept["metrics"].items()}
    return flat | {"final/tokens_seen": kept["tokens"]}


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out what W&B adds itself."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def chosen(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key.startswith(("final/", "eval/"))}


def check_config(run: Run, config: dict[str, Any]) -> None:
    assert config["label"] == "token_choice"
    assert config["choices"] == run.choices
    assert config["allocator"] == run.config.nodes["allocator"]
    assert config["k"] == run.config.k
    assert config["deep"] == {"a/b/c/d": '[1, 2.5, null, "x"]'}


def test_eight_offline_runs_of_one_process_equal_their_files(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    runs = [new_run(tmp_path / "sweep", index) for index in range(8)]
    tracking = tracker("offline")
    train(runs, tracking)
    tracking.close()
    wandb.teardown()
    mirrored = read_all(tmp_path / "sweep" / "wandb")
    assert set(mirrored) == {run.name for run in runs}
    for run in runs:
        mirror: OfflineRun = mirrored[run.name]
        assert [own(row) for row in mirror.rows] == logged(run)
        assert chosen(mirror.summary) == finals(run)
        assert mirror.exit_code == 0
        assert mirror.step_metrics["*"] == "tokens_seen"
        assert mirror.fields["group"] == "sweep"
        assert mirror.fields["job_type"] == "train"
        assert (mirror.fields["entity"], mirror.fields["project"]) == ("lab", "saes")
        assert mirror.fields["tags"] == ["relu", "token_choice", "synthetic", "mine", "x" * 64]
        assert mirror.fields["id"] == (run.folder / "wandb_id.txt").read_text().strip()
        assert len(mirror.fields["id"]) <= 64 and mirror.fields["id"].startswith(run.name)
        check_config(run, mirror.config)
    assert len(said()) == 1
    assert "offline" in said()[0] and "sae-sweeps sync" in said()[0] and "wandb leet" in said()[0]


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option of a config with the way to it."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from leaves(value, (*path, key))


def test_every_option_of_a_run_can_be_filtered_by(tmp_path: Path) -> None:
    """It is a scalar, not in a list, and its name has one dot at most; W&B takes three."""
    words = [
        ["tracking=wandb", "tracking.tags=[mine]", "method=gated"],
        ["architecture=matryoshka", "aux_loss=aux_zipf", "resampling=neuron_resampling"],
        ["target_model=synthetic", "allocator=feature_choice", "fine_tune=scale"],
    ]
    runs = [small_run(tmp_path / "sweep" / "runs", *line) for line in words]
    tracking = tracker("offline")
    for run in runs:
        run.folder.mkdir(parents=True)
        tracking.open(run)
    tracking.close()
    wandb.teardown()
    mirrored = read_all(tmp_path / "sweep" / "wandb")
    for run in runs:
        found = mirrored[run.name].config
        options = list(leaves(run.config.tree))
        assert len(options) > 40
        for (top, *rest), value in options:
            there = found[top]["/".join(rest)] if rest else found[top]
            assert isinstance(there, str | int | float | None) and "." not in "".join(rest)
            assert there == (json.dumps(value) if isinstance(value, list) else value)
        assert {tuple(path) for path, _ in leaves(found["choices"])} == {(g,) for g in run.choices}
        tags = mirrored[run.name].fields["tags"]
        groups = ("architecture", "allocator", "aux_loss", "target_model")
        assert {run.choices[group] for group in groups} - {"none"} <= {*tags}
        assert not {"off", "wandb", "none"} & {*tags}


def test_online_runs_equal_their_files(
    tmp_path: Path, backend: Backend, said: Callable[[], list[str]]
) -> None:
    runs = [new_run(tmp_path / "sweep", index) for index in range(4)]
    tracking = tracker("auto")
    train(runs, tracking)
    tracking.close()
    served = {run.fields["displayName"]: run for run in backend.runs.values()}
    assert set(served) == {run.name for run in runs}
    for run in runs:
        mirror: ServedRun = served[run.name]
        assert [own(row) for row in mirror.rows()] == logged(run)
        assert chosen(mirror.summary) == finals(run)
        assert (mirror.complete, mirror.exit_code) == (True, 0)
        assert mirror.fields["groupName"] == "sweep"
        assert mirror.fields["jobType"] == "train"
        assert mirror.fields["tags"] == ["relu", "token_choice", "synthetic", "mine", "x" * 64]
        check_config(run, mirror.user_config)
    assert len(said()) == 1 and "online" in said()[0] and "lab/saes" in said()[0]


def summary_of(sweep: Path) -> Summary:
    from PIL import Image

    sweep.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 4)).save(sweep / "pareto.png")
    table = [
        {"run": "a", "k": 4.0, "l0": 3.9, "fvu": 0.2, "ce_recovered": 0.9},
        {"run": "b", "k": 8.0, "l0": 7.7, "fvu": 0.1},
    ]
    lines = {"relu": ([3.9, 7.7], [0.2, 0.1]), "gated": ([4.0], [0.15])}
    return Summary(sweep.name, sweep, table, "relu: 1 of 1", {"fvu": lines}, sweep / "pareto.png")


def test_summary_of_a_sweep_offline(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "sweep")
    tracking = tracker("offline")
    tracking.summarise(summary)
    tracking.summarise(summary)
    tracking.close()
    wandb.teardown()
    first, second = (read(f) for f in sorted((tmp_path / "sweep/wandb").glob("offline-run-*")))
    assert first.fields["id"] == second.fields["id"]
    assert first.fields["name"] == "sweep-summary"
    assert (first.fields["group"], first.fields["job_type"]) == ("sweep", "sweep-summary")
    for fragment in (first, second):
        table = fragment.table("runs")
        assert table["columns"] == ["run", "k", "l0", "fvu", "ce_recovered"]
        assert table["data"] == [["a", 4.0, 3.9, 0.2, 0.9], ["b", 8.0, 7.7, 0.1, None]]
        assert fragment.summary["frontier"] == summary.frontier
        curves = fragment.table("pareto/fvu_table")
        assert sorted(map(tuple, curves["data"])) == [
            (3.9, "relu", 0.2),
            (4.0, "gated", 0.15),
            (7.7, "relu", 0.1),
        ]
        picture = fragment.folder / "files" / fragment.summary["pareto"]["path"]
        assert picture.read_bytes() == summary.picture.read_bytes()


def test_summary_of_a_sweep_online_is_one_run(tmp_path: Path, backend: Backend) -> None:
    summary = summary_of(tmp_path / "sweep")
    tracking = tracker("online")
    tracking.summarise(summary)
    tracking.summarise(summary)
    tracking.close()
    (mirror,) = backend.runs.values()
    assert mirror.id.startswith("sweep-summary-")
    assert (mirror.fields["groupName"], mirror.fields["jobType"]) == ("sweep", "sweep-summary")
    assert len(mirror.rows()) == 2
    for row in mirror.rows():
        table = json.loads(mirror.uploads[row["runs"]["path"]])
        assert table["data"][0] == ["a", 4.0, 3.9, 0.2, 0.9]
    assert mirror.uploads[mirror.summary["pareto"]["path"]] == summary.picture.read_bytes()


def decided(tmp_path: Path, mode: Mode) -> tuple[str, float]:
    """Track one run of one row, and say where it went and how long that took."""
    start = time.monotonic()
    tracking = tracker(mode)
    train([new_run(tmp_path / "sweep", 0)], tracking, count=1)
    tracking.close()
    seconds = time.monotonic() - start
    folder = tmp_path / "sweep" / "wandb"
    offline, online = list(folder.glob("offline-run-*")), list(folder.glob("run-*"))
    assert len(offline) + len(online) <= 1
    return ("offline" if offline else "online" if online else "nowhere"), seconds


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_offline_and_no_question(
    tmp_path: Path, mode: Mode, said: Callable[[], list[str]]
) -> None:
    where, seconds = decided(tmp_path, mode)
    assert where == "offline" and seconds < 5
    assert "no API key" in said()[0]


def test_a_malformed_key_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert decided(tmp_path, "auto")[0] == "offline"
    assert "40" in said()[0]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["closed", "silent"])
def test_a_dead_server_means_offline_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if server == "silent":
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setenv("WANDB_BASE_URL", url)
        where, seconds = decided(tmp_path, "auto")
    assert where == "offline" and seconds < 6


def test_a_server_that_breaks_down_means_offline(tmp_path: Path, backend: Backend) -> None:
    backend.refuse = lambda _: 503
    assert decided(tmp_path, "auto")[0] == "offline"


def test_a_live_server_means_online(tmp_path: Path, backend: Backend) -> None:
    assert decided(tmp_path, "auto")[0] == "online"
    assert len(backend.runs) == 1


@pytest.mark.parametrize(("variable", "where"), [("disabled", "nowhere"), ("offline", "offline")])
def test_the_environment_wins(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch, variable: str, where: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert decided(tmp_path, "online")[0] == where
    assert backend.requests == []


@pytest.mark.slow
def test_a_server_that_dies_costs_training_nothing(
    tmp_path: Path,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], list[str]],
) -> None:
    monkeypatch.setattr(session, "FINISH_LIMIT_S", 4.0)
    runs = [new_run(tmp_path / "sweep", index) for index in range(4)]
    mirrors = tracker("auto")
    opened = [mirrors.open(run) for run in runs]
    wait_for(lambda: len(backend.runs) == len(runs))
    time.sleep(0.3)  # the last of them has its answer, and may start
    backend.stop()
    seconds: list[float] = []
    for index, (run, mirror) in enumerate(zip(runs, opened, strict=True)):
        for row in rows(index, 200):
            with run.files.metrics.open("a") as file:
                file.write(f"{row.line}\n")
            start = time.perf_counter()
            mirror.log(row)
            seconds.append(time.perf_counter() - start)
        mirror.finish(result(run, index))
    start = time.monotonic()
    mirrors.close()
    assert time.monotonic() - start < 8
    assert sorted(seconds)[int(0.99 * len(seconds))] < 0.050
    assert sum("the server did not take all rows in 4 s" in line for line in said()) == 1
    start = time.monotonic()
    mirrors.summarise(summary_of(tmp_path / "sweep"))
    mirrors.close()
    assert time.monotonic() - start < 8, "the report waits for the dead server again"
    assert list((tmp_path / "sweep/wandb").glob("offline-run-*-sweep-summary-*"))
    wandb.teardown()
    kept = {run.fields["name"]: run for run in map(read, (tmp_path / "sweep/wandb").glob("run-*"))}
    for run in runs:
        assert [own(row) for row in kept[run.name].rows] == logged(run)


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("good", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_start_that_fails_goes_on_offline(
    tmp_path: Path, backend: Backend, said: Callable[[], list[str]], good: int
) -> None:
    """Before the first good start the id is kept; after it, W&B cannot give it back."""
    answered: list[str] = []

    def refuse(name: str) -> int | None:
        answered.append(name)
        return 401 if name == "UpsertBucket" and answered.count(name) > good else None

    backend.refuse = refuse
    runs = [new_run(tmp_path / "sweep", index) for index in range(3)]
    mirrors = tracker("auto")
    train(runs, mirrors)
    mirrors.close()
    wandb.teardown()
    folder = tmp_path / "sweep" / "wandb"
    assert len([path for path in folder.glob("run-*") if path.is_dir()]) >= good
    offline = read_all(folder)
    for run in runs[good:]:
        assert [own(row) for row in offline[run.name].rows] == logged(run)
        assert chosen(offline[run.name].summary) == finals(run)
    assert sum("offline" in line for line in said()) == 1


def test_trouble_is_swallowed_and_told_once(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    mirrors = tracker("offline")
    mirror = mirrors.open(new_run(tmp_path / "sweep", 0))
    with unchecked():
        for _ in range(5):
            mirror.log(Row(None, {"train/loss": 1.0}))  # pyright: ignore[reportArgumentType]
        mirror.log(rows(0)[0])
        mirror.finish(None)
        mirrors.close()
    wandb.teardown()
    (kept,) = read_all(tmp_path / "sweep" / "wandb").values()
    assert [own(row)["tokens_seen"] for row in kept.rows] == [4096]
    assert kept.exit_code == 1
    assert sum("TypeError" in line for line in said()) == 1 == len(said()) - 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("a file where a folder should be")
    run = replace(new_run(tmp_path, 0), folder=tmp_path / "sweep" / "runs" / "r")
    mirrors = tracker("offline")
    mirror = mirrors.open(run)
    mirror.log(rows(0)[0])
    mirror.finish(result(run, 0))
    mirrors.close()


def test_files_for_upload_stay_in_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_CACHE_DIR")
    sweep = tmp_path / "sweep"
    tracking = tracker("offline")
    tracking.summarise(summary_of(sweep))
    tracking.close()
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        assert Path(os.environ[name]).parent == sweep / "wandb"
    assert not list((tmp_path / "home").rglob("*")), "W&B wrote into the home folder"


def test_wandb_is_silent_after_a_teardown_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when its process hangs, is ended, and a run that W&B still has finds it gone."""
    assert decided(tmp_path, "offline")[0] == "offline"
    wandb.teardown()
    assert wandb_setup.singleton().settings  # which are loaded anew
    capsys.readouterr()
    wandb.termerror("Problem finishing run")
    assert capsys.readouterr().err == ""


def test_off_and_disabled_write_nothing_and_load_nothing(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from sae_sweeps.tracking.interface import Summary
from sae_sweeps.tracking.off import Off
from sae_sweeps.tracking.wandb.tracker import Wandb
from sae_sweeps.config.options import RunConfig
from sae_sweeps.record.result import Row
from sae_sweeps.record.run import Run
CONFIG = RunConfig.of({fabricate.config(0).tree!r})
folder = Path({str(tmp_path)!r}) / "sweep" / "runs" / "r"
choices = {{"architecture": "relu", "allocator": "none", "aux_loss": "none"}}
summary = Summary("sweep", folder.parents[1], [], "", {{}}, folder)
for tracking in (Off(), Wandb(project="p", entity=None, mode="disabled", tags=[])):
    mirror = tracking.open(Run("r", "sweep", folder, CONFIG, choices, []))
    mirror.log(Row(1, {{}}))
    mirror.finish(None)
    tracking.summarise(summary)
    tracking.close()
assert not {{"wandb", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    assert not (tmp_path / "sweep").exists()


def test_every_run_has_the_commit_of_the_folder_it_was_started_in(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run asks git; the others are told."""
    home = tmp_path / "code"
    git = ["git", "-C", str(home), "-c", "user.name=x", "-c", "user.email=x@x.x"]
    subprocess.run(["git", "init", "-q", str(home)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://code.example/x.git"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    monkeypatch.chdir(home)
    tracking = tracker("online")
    train([new_run(tmp_path / "sweep", index) for index in range(3)], tracking, count=1)
    tracking.close()
    told = [(run.fields["commit"], run.fields["repo"]) for run in backend.runs.values()]
    assert told == [(head.stdout.strip(), "https://code.example/x.git")] * 3


LAUNCH = """
import sys
from pathlib import Path
if sys.argv[2] == "loaded":
    from wandb.sdk.launch.inputs.internal import StagedLaunchInputs
    StagedLaunchInputs.apply = lambda self, run: print("applied")
from test_tracking import new_run, tracker, train
tracking = tracker("offline")
train([new_run(Path(sys.argv[1]) / "sweep", 0)], tracking, count=1)
tracking.close()
print("wandb.sdk.launch" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("start", "said"), [("loaded", "applied\nTrue\n"), ("anew", "False\n")])
def test_wandb_launch_is_asked_only_where_the_user_has_loaded_it(
    tmp_path: Path, start: str, said: str
) -> None:
    command = [sys.executable, "-c", LAUNCH, str(tmp_path), start]
    home, env = Path(__file__).parent, os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=home, env=env, check=True, capture_output=True, text=True)
    assert done.stdout == said
