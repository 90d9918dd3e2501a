"""The local launcher: what is trained, skipped, grouped and written; locks; failures; displays."""

import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import OmegaConf
from rich.console import Console

from sae_sweeps.errors import ConfigError
from sae_sweeps.launching import progress
from sae_sweeps.record.plan import Plan
from sae_sweeps.record.run import Run
from sae_sweeps.system import files
from tests.support.commands import Trainer, command, configs, run, trainer, write

__all__ = ["run", "trainer"]  # fixtures


def manifest(name: str) -> dict[str, Any]:
    return json.loads(Path("outputs", name, "sweep.json").read_text())


# --- What is trained -----------------------------------------------------------------------


def test_points_of_equal_identity_train_once(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=relu", "architecture.target_l0=8", "k=4,5", "seed=0,1"]
    assert run("-m", "name=twins", *words) == 0
    assert [config["seed"] for config in configs(trainer)] == [0, 1]
    assert "2 of 4 points repeat another's training" in capsys.readouterr().out
    assert len(manifest("twins")["points"]) == 4


def test_finished_runs_are_skipped_and_unfinished_ones_trained(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", "name=again", "k=4,8,16") == 0
    broken, other, kept = trainer.runs
    (broken.folder / "result.json").write_text('{"version": 1, "metr')
    result = json.loads((other.folder / "result.json").read_text())
    result["config"]["seed"] = 5
    (other.folder / "result.json").write_text(json.dumps(result))
    trainer.packs.clear()
    trainer.reports.clear()
    assert run("-m", "name=again", "k=4,8,16") == 0
    assert [r.name for r in trainer.runs] == [broken.name, other.name]
    assert kept.name not in [r.name for r in trainer.runs]
    assert "2 runs to train, 1 finished before" in capsys.readouterr().out
    assert len(trainer.reports) == 1


def test_a_finished_sweep_trains_nothing_and_draws_its_report_again(
    run: Callable[..., int], trainer: Trainer
) -> None:
    assert run("name=done") == 0
    before = manifest("done")
    assert run("name=done") == 0
    assert len(trainer.packs) == 1 and len(trainer.reports) == 2
    assert manifest("done") == before


def test_other_evaluation_options_measure_anew_and_retrain_nothing(
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("-m", "name=eval", "k=4,8") == 0

    def measure(runs: list[Run]) -> list[Any]:
        return [runs[0].files.result(), OSError("no weights")]

    trainer.measure = measure
    assert run("-m", "name=eval", "k=4,8", "evaluation.tokens=20000") == 2
    assert [r.config.tree["evaluation"]["tokens"] for pack in trainer.measured for r in pack] == [
        20000,
        20000,
    ]
    assert len(trainer.runs) == 2 and len(trainer.reports) == 2
    said = capsys.readouterr()
    assert "0 runs to train, 2 to measure anew" in said.out
    assert "failed: OSError: no weights" in said.err


@pytest.mark.slow
def test_finished_runs_are_measured_anew_on_demand(
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("-m", "name=eval", "k=4,8") == 0

    assert run("-m", "name=eval", "k=4,8", "measure_anew=true") == 0
    assert [len(pack) for pack in trainer.measured] == [2] and len(trainer.runs) == 2
    assert "0 runs to train, 2 to measure anew" in capsys.readouterr().out
    assert run("-m", "name=eval", "k=4,8") == 0
    assert len(trainer.measured) == 1 and "2 finished before" in capsys.readouterr().out


GAP = '''
"""A user's measure; nothing that plans a launch imports it."""
from sae_sweeps.interfaces import Measurement
raise RuntimeError("imported")


class Gap(Measurement):
    def __init__(self, *, width: float) -> None: ...
'''


def test_another_measure_measures_anew_and_none_asks_for_nothing(
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write(tmp_path / "my_gap_module.py", GAP)
    write(tmp_path / "mine/measure/gap.yaml", "_target_: my_gap_module.Gap\nwidth: 1.0\n")
    words = ("--config-dir", "mine", "-m", "name=own", "k=4,8")
    assert run(*words) == 0
    capsys.readouterr()

    def measure(runs: list[Run]) -> list[Any]:
        for one in runs:
            config = replace(one.config, measure_anew=False)
            one.files.finish(replace(one.files.result(), config=config))
        return [one.files.result() for one in runs]

    trainer.measure = measure
    todo = "0 runs to train, 2 to measure anew"
    done = "0 runs to train, 2 finished before"
    steps = [("measure=gap", todo), ("measure=gap", done), ("measure=none", done)]
    steps += [("measure.width=2", todo), ("measure.width=2", done), ("measure=gap", todo)]
    for word, expected in steps:
        group = [] if word.startswith("measure=") else ["measure=gap"]
        assert run(*words, *group, word) == 0
        assert expected in capsys.readouterr().out, word
    assert len(trainer.runs) == 2
    assert run(*words, "measure=none,gap") == 1
    assert "measure differs between points" in capsys.readouterr().err


def test_runs_of_one_stream_share_a_pack(run: Callable[..., int], trainer: Trainer) -> None:
    assert run("-m", "method=topk,gated", "stream.seed=0,1", "k=4,8") == 0
    assert [len(pack) for pack in trainer.packs] == [4, 4]
    for pack in trainer.packs:
        assert len({json.dumps(r.config.tree["stream"]) for r in pack}) == 1


def test_a_run_found_under_another_slug_is_the_same_run(
    run: Callable[..., int], trainer: Trainer
) -> None:
    words = ["name=slug", "method=relu", "architecture.target_l0=8"]
    assert run(*words, "k=4") == 0
    assert run(*words, "k=5") == 0
    assert len(trainer.runs) == 1


# --- What is written -----------------------------------------------------------------------


def test_the_manifest_and_the_runs_files(run: Callable[..., int], trainer: Trainer) -> None:
    assert run("-m", "name=files", "k=4,8") == 0
    said = manifest("files")
    assert (said["version"], said["name"]) == (3, "files")
    assert said["packs"] == [{"name": "1-0", "runs": [r.name for r in trainer.runs], "job": None}]
    assert {"torch", "hydra-core", "python"} <= set(said["packages"])
    assert said["command"] and said["time"] and "git" in said
    for point, made in zip(said["points"], trainer.runs, strict=True):
        assert point["run"] == made.name and point["config"] == made.config.tree
        assert point["choices"]["allocator"] == "token_choice"
        assert f"k={made.config.tree['k']:g}" in point["overrides"]
        stored = OmegaConf.to_container(OmegaConf.load(made.folder / "config.yaml"))
        assert stored == made.config.tree
        overrides = OmegaConf.to_container(OmegaConf.load(made.folder / "overrides.yaml"))
        assert overrides == made.overrides


def test_a_later_command_extends_the_manifest(run: Callable[..., int], trainer: Trainer) -> None:
    assert run("name=more", "k=4") == run("name=more", "k=8") == 0
    assert [point["config"]["k"] for point in manifest("more")["points"]] == [4.0, 8.0]
    [earlier] = manifest("more")["earlier"]
    assert [pack["runs"] for pack in earlier["packs"]] == [[trainer.runs[0].name]]


def test_a_manifest_of_another_version_is_left_alone(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path / "outputs/old/sweep.json", '{"version": 99}')
    assert run("name=old") == 1
    assert "has version 99, expected 3" in capsys.readouterr().err
    assert trainer.runs == [] and manifest("old") == {"version": 99}


def test_nothing_is_written_before_the_pack_is_known_to_load(
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def no_hook(_: list[Run]) -> None:
        assert not (tmp_path / "outputs").exists()
        raise ConfigError("target_model.hook is 'x': the model has no such hook.")

    trainer.before_ready = no_hook
    assert run("hydra.launcher.progress=off") == 1
    assert capsys.readouterr().err.splitlines() == [
        "sae-sweeps: target_model.hook is 'x': the model has no such hook."
    ]
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    assert run("hydra.launcher.progress=off") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sae-sweeps: cannot write ") and "outputs" in line


# --- Failures ------------------------------------------------------------------------------


def test_a_failed_run_is_told_in_one_line_and_ends_with_2(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    error = FloatingPointError("long story\nthe loss is nan after 1024 tokens")
    trainer.error_of = lambda r: error if r.config.tree["k"] == 8 else None
    assert run("-m", "k=4,8,16", "hydra.launcher.progress=off") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sae-sweeps: token-choice-aux-k-k8-s0-")
    assert line.endswith("failed: FloatingPointError: the loss is nan after 1024 tokens")
    assert len(trainer.reports) == 1


def test_without_any_result_there_is_no_report(run: Callable[..., int], trainer: Trainer) -> None:
    trainer.error_of = lambda _: RuntimeError("no")
    assert run() == 2
    assert trainer.reports == []


@pytest.mark.slow
def test_a_pack_that_breaks_leaves_the_others_alone(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    def second(pack: list[Run]) -> None:
        if pack[0].config.tree["stream"]["seed"] == 1:
            raise ConfigError("the data hold 10 training tokens.")

    trainer.before_ready = second
    assert run("-m", "name=some", "stream.seed=0,1,2", "hydra.launcher.progress=off") == 2
    assert [r.config.tree["stream"]["seed"] for r in trainer.runs] == [0, 2]
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("failed: the data hold 10 training tokens.")
    [failed] = Path("outputs/some/runs").glob("*/failed.json")
    assert json.loads(failed.read_text()) == {"error": "the data hold 10 training tokens."}
    trainer.before_ready = lambda _: None
    assert run("-m", "name=some", "stream.seed=0,1,2") == 0
    assert not failed.exists()


def test_a_sweep_in_use_is_refused(
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sae_sweeps.launching.writer.LOCK_LIMIT_S", 0.1)
    refused = "is in use by another sae-sweeps: wait for it, or give another name."
    folder = tmp_path / "outputs/busy"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert run("name=busy") == 1
    assert refused in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [".lock"]

    codes: list[int] = []

    def meanwhile(pack: list[Run]) -> None:  # another command begins while this one loads
        if not codes:
            codes.append(-1)
            with FileLock(tmp_path / "outputs/race/.lock"):
                trainer.before_ready = lambda _: None
                codes[0] = 1
                raise_if_held(pack)

    def raise_if_held(pack: list[Run]) -> None:
        plan = Plan("race", tmp_path / "outputs/race", [], [], {}, [pack], [])
        from sae_sweeps.launching.writer import Writer

        with pytest.raises(ConfigError, match="is in use"):
            Writer(plan, [pack], {}).begin()

    (tmp_path / "outputs/race").mkdir()
    trainer.before_ready = meanwhile
    assert run("name=race") == 0
    assert codes == [1]


# --- Other launchers and sweepers ----------------------------------------------------------


@pytest.mark.slow
def test_the_stock_launcher_trains_each_point_as_a_pack_of_one(
    run: Callable[..., int], trainer: Trainer
) -> None:
    words = ["-m", "name=stock", "k=4,8"]
    assert run(*words, "hydra/launcher=basic") == 0
    assert [len(pack) for pack in trainer.packs] == [1, 1]
    stock = [r.name for r in trainer.runs]
    assert [path.name for path in trainer.reports] == ["stock"]
    trainer.packs.clear()
    assert run(*words) == 0  # our launcher finds the same runs in the same folders, finished
    assert trainer.runs == []
    assert sorted(path.name for path in Path("outputs/stock/runs").iterdir()) == sorted(stock)


@pytest.mark.slow
def test_the_stock_launcher_gets_a_derived_name_too(
    run: Callable[..., int], trainer: Trainer
) -> None:
    assert run("-m", "k=4,8", "hydra/launcher=basic") == 0
    [folder] = Path("outputs").iterdir()
    assert {r.sweep for r in trainer.runs} == {folder.name}
    assert run("-m", "k=4,8") == 0
    assert len(trainer.runs) == 2


def test_a_failure_with_the_stock_launcher_ends_with_2(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.error_of = lambda r: RuntimeError("gone") if r.config.tree["k"] == 8 else None
    assert run("-m", "k=4,8", "hydra/launcher=basic") == 2
    assert "k=8" in capsys.readouterr().err


def test_the_stock_sweeper_and_a_plain_run(
    run: Callable[..., int], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("-m", "name=sweeper", "k=4,8", "hydra/sweeper=basic") == 0
    assert [len(pack) for pack in trainer.packs] == [2]
    assert command(monkeypatch, "--run", "name=sweeper", "k=16", "tracking=off") == 0
    assert {r.folder.parent for r in trainer.runs} == {Path("outputs/sweeper/runs").absolute()}


# --- Files ---------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep/file.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    assert path.stat().st_mode & 0o600 == 0o600


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "a" * 100_000)
    seen: set[tuple[int, int]] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            text = path.read_text()
            seen.add((len(text), len(set(text))))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in "bcdef" * 4:
        files.write_text(path, letter * 100_000)
    stop.set()
    reader.join()
    assert seen == {(100_000, 1)}


# --- Displays ------------------------------------------------------------------------------


def test_runs_of_one_method_are_told_apart(
    run: Callable[..., int], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[progress.Display] = []
    make = progress.make

    def watched(*given: Any) -> progress.Display:
        shown.append(make(*given))
        return shown[-1]

    monkeypatch.setattr(progress, "make", watched)
    assert run("-m", "k=4,8") == 0
    assert [row.label for row in shown[0].rows] == [
        "token_choice + aux_k, k 4, seed 0",
        "token_choice + aux_k, k 8, seed 0",
    ]
    assert len(trainer.runs) == 2


def drive(display: progress.Display) -> None:
    with display:
        display.stage("loading the model")
        display.started(2000, ["topk", "gated"])
        display.advance(0, 1000)
        display.metrics(0, {"l0": 15.97, "fvu": 0.1234, "extra": 1.0})
        display.finished(0, "finished")
        display.advance(1, 200)
        display.finished(1, "failed")


def test_lines_are_few_and_count(capsys: pytest.CaptureFixture[str]) -> None:
    drive(progress.Lines(2, 2000))
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 2 and said.out == ""
    assert "0 of 2 runs: loading the model" in lines[0]
    assert lines[1].startswith("100 %, 2 of 2 runs, 1 failed, ")


def test_the_bar_shows_runs_and_their_numbers() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    display = progress.Bar(3, 3000, console)
    drive(display)
    with console.capture() as shown:
        console.print(display.render())
    text = shown.get()
    for part in ("2 of 3 runs", "1 failed", "topk (finished)", "15.97", "0.1234", "1,000"):
        assert part in text
    assert display.tokens == 3000 - 800


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    drive(progress.make("off", 2, 2000))
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_threads_lose_no_tokens() -> None:
    display = progress.Quiet(8, 8 * 5000)
    display.started(8 * 5000, list("abcdefgh"))

    def work(index: int) -> None:
        for _ in range(5000):
            display.advance(index, 1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert display.done == 8 * 5000


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (3723.0, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
