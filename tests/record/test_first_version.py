"""Sweeps that the first version left (see `first_version/make.sh`): today's code goes on from them.

What a release may add is added to a copy of the package, and the sweeps are looked at again.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file

from sae_sweeps.cli import commands
from sae_sweeps.config import groups, history
from sae_sweeps.config.options import ROOT, SECTIONS, RunConfig
from sae_sweeps.config.signature import signature
from sae_sweeps.record.folder import MANIFEST_VERSION, PACK_VERSION, RESULT_VERSION
from sae_sweeps.record.identity import identity
from tests.support.launches import Launches, launches
from tests.support.wandb_backend import Backend

HERE = Path(__file__).parent / "first_version"
REPOSITORY = HERE.parents[2]
QUIET = "hydra.launcher.progress=off"
FINISHED = ("six", "phases", "unnamed", "axes", "hooks")
SYNTHETIC = ("six", "phases", "unnamed", "axes")

__all__ = ["launches"]  # a fixture

pytestmark = pytest.mark.xdist_group("launches")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder in which the first version trained: outputs, commands, references."""
    with tarfile.open(HERE / "sweeps.tar.xz") as archive:
        # Python 3.11.3 and older know no filter, and the archive is our own.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    return tmp_path


THEN = ("stream.special_tokens=true", "stream.centre=false")
"""What defaults that have changed since were."""


def typed(study: Path, name: str) -> list[str]:
    """The first version's command, to which today's defaults apply."""
    return [*json.loads((study / "commands.json").read_text())[name], QUIET]


def command(study: Path, name: str) -> list[str]:
    """The same with the first version's defaults."""
    return [*THEN, *typed(study, name)]


def stamps(study: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in study.glob("outputs/*/runs/*/result.json")}


# --- As it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINISHED)
def test_its_commands_find_nothing_to_do(study: Path, launches: Launches, name: str) -> None:
    before, folders = stamps(study), sorted((study / "outputs").iterdir())
    launch = launches.run(study, *command(study, name))
    assert launch.code == 0, launch.err
    assert ": 0 runs to train, " in launch.out and "measure" not in launch.out
    assert "differ in" not in launch.out
    assert stamps(study) == before
    assert sorted((study / "outputs").iterdir()) == folders


def test_options_that_have_moved_are_taken_for_it_and_told(study: Path, launches: Launches) -> None:
    told = launches.run(study, *command(study, "unnamed")).err
    assert "training.lr is optimizer.lr now" in told
    assert "training.warmup_tokens is schedule.warmup_tokens now" in told
    told = launches.run(study, "training.lr=x", "k=4", QUIET).err
    assert told == "sae-sweeps: optimizer.lr is 'x', expected float.\n"


@pytest.mark.slow
def test_half_trained_runs_end_at_the_weights_they_would_have_had(
    study: Path, launches: Launches
) -> None:
    """The reference is another machine's, whose products are rounded otherwise."""
    launch = launches.run(study, *command(study, "half"))
    assert launch.code == 0, launch.err
    assert "half: 6 runs to train, 6 of them from a checkpoint" in launch.out
    references = sorted((study / "half_reference").iterdir())
    assert len(references) == 6
    for reference in references:
        folder = study / "outputs/half/runs" / reference.stem
        assert "resumed at 6" in (folder / "run.log").read_text()
        wanted, found = load_file(reference), load_file(folder / "checkpoint/weights.safetensors")
        assert wanted.keys() == found.keys()
        for name in ("W_enc", "W_dec"):
            apart = torch.linalg.matrix_norm(found[name] - wanted[name])
            assert apart < 0.05 * torch.linalg.matrix_norm(wanted[name]), (reference.stem, name)


@pytest.mark.slow
def test_a_frozen_pack_is_trained(study: Path) -> None:
    path = study / "outputs/frozen/packs/1-0.json"
    words = [sys.executable, "-m", "sae_sweeps.launching.job", str(path)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(words, cwd=study, env=env, check=True, capture_output=True)
    names = [row["name"] for row in json.loads(path.read_text())["runs"]]
    results = sorted(path.parent.name for path in study.glob("outputs/frozen/runs/*/result.json"))
    assert results == sorted(names) and len(names) == 2


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "pareto.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "frontier"}
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_report_and_status_are_as_before(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in sorted((study / "outputs").iterdir()):
        found = [path for path in (folder / "runs").glob("*/result.json")]
        before = rows_of(folder) if found else []
        capsys.readouterr()
        assert commands.main(["status", str(folder), "--json"]) == 0
        [said] = json.loads(capsys.readouterr().out)
        assert said["counts"]["done"] == len(found)
        if found:
            assert commands.main(["report", str(folder)]) == 0
            # How settings stand has another rule now, and columns of its own.
            after = [
                {key: row[key] for key in was}
                for row, was in zip(rows_of(folder), before, strict=True)
            ]
            assert after == before
            assert (folder / "report.html").exists()


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    home = tmp_path / "home"
    home.mkdir()
    before = set(os.environ)
    with Backend() as backend:
        for name, value in backend.client(home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("WANDB_MODE")
        yield backend
        wandb.teardown()
    for name in [n for n in os.environ if n.startswith("WANDB") and n not in before]:
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_its_wandb_logs_are_uploaded(
    study: Path, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["sync", str(study / "outputs/six")]) == 0, capsys.readouterr()
    assert "six: W&B runs: 13 uploaded" in capsys.readouterr().out
    for folder in (study / "outputs/six/runs").iterdir():
        run = backend.runs[(folder / "wandb_id.txt").read_text().strip()]
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        assert len(run.rows()) == len(rows) > 0
        assert (
            run.summary["final/l0"]
            == json.loads((folder / "result.json").read_text())["metrics"]["l0"]
        )


def test_an_earlier_version_refuses_what_todays_writes() -> None:
    """It reads manifests of version 2, packs and results of version 1, and says so in one line."""
    assert (MANIFEST_VERSION, PACK_VERSION, RESULT_VERSION) == (3, 3, 2)


def test_a_config_is_the_same_however_often_it_is_upgraded(study: Path) -> None:
    paths = sorted(study.glob("outputs/*/runs/*/result.json"))
    assert len(paths) > 20
    for path in paths:
        stored = json.loads(path.read_text())["config"]
        today = history.upgrade(stored)
        assert history.upgrade(today) == today != stored
        assert path.parent.name.endswith(f"-{identity(RunConfig.of(today))[:8]}")
        assert "lr" not in today["training"] and "lr" in today["optimizer"]


# --- What comes later ----------------------------------------------------------------------


def first() -> dict[str, Any]:
    return json.loads((HERE / "options.json").read_text())


def test_every_option_that_came_later_has_a_birth_value() -> None:
    """Else a new release would train every run anew; see `marks.Birth`."""
    known = first()
    later = [
        (f"{target}: {name}", option)
        for target, names in _options_known(known).items()
        for name, option in signature(target).items()
        if name not in names
    ]
    assert [name for name, option in later if option.birth is None] == []
    assert len(later) >= 1
    young = [group for group in groups.GROUPS if group.name not in known["groups"]]
    assert [group.name for group in young if group.trains and group.birth is None] == []
    assert set(known["sections"]) <= set(SECTIONS)


def _options_known(known: dict[str, Any]) -> dict[str, list[str]]:
    """By class its options in the first version, and what has moved there since."""
    at = {ROOT: known["options"] + list(SECTIONS)}
    at |= {SECTIONS[section]: names for section, names in known["sections"].items()}
    at |= known["classes"]
    for new in history.MOVED.values():
        group, _, name = new.partition(".")
        at.setdefault(history.BIRTHS[group], []).append(name)
    return at


def test_no_option_of_the_first_version_is_gone() -> None:
    for target, names in _options_known(first()).items():
        section = next((key for key, value in SECTIONS.items() if value == target), "")
        for name in names:
            moved = history.MOVED.get(f"{section}.{name}")
            assert moved or name in signature(target), (target, name)


ADDED: dict[str, list[tuple[str, str]]] = {
    "sae_sweeps/allocator/token_choice.py": [
        ("*, k: ", "*, jitter: Annotated[float, Birth(0.0)], k: "),
        ("marks import AtMost", "marks import AtMost, Birth"),
    ],
    "conf/allocator/token_choice.yaml": [("k: ${k}", "k: ${k}\njitter: 0.0")],
    "sae_sweeps/config/options.py": [
        ("    ce_tokens: ", "    probe: Annotated[int, Birth(0)]\n    ce_tokens: "),
        (
            "    precision: Literal",
            "    late: Annotated[int, Birth('${share:0.5}')]\n    precision: Literal",
        ),
        (
            "    stream: StreamOptions\n",
            "    rounding: Annotated[str, Birth('none')]\n"
            "    extra: ExtraOptions\n    stream: StreamOptions\n",
        ),
        (
            "@dataclass(frozen=True, kw_only=True)\nclass RootOptions",
            "@dataclass(frozen=True, kw_only=True)\nclass ExtraOptions:\n"
            "    width: Annotated[int, Birth(3)]\n\n\n"
            "@dataclass(frozen=True, kw_only=True)\nclass RootOptions",
        ),
    ],
    "conf/config.yaml": [
        ("\nseed: 0 #", "\nrounding: none\nextra:\n  width: 3\nseed: 0 #"),
        ("  ce_tokens: 16384", "  probe: 0\n  ce_tokens: 16384"),
        ("  precision: auto", "  late: ${share:0.5}\n  precision: auto"),
        ("  - schedule: linear\n", "  - schedule: linear\n  - noise: silent\n"),
    ],
    "sae_sweeps/config/groups.py": [
        ("GROUPS = (", 'GROUPS = (\n    Group("noise", "Noise", birth="sae_sweeps.noise.Silent"),')
    ],
    "sae_sweeps/interfaces.py": [
        ("class Schedule(ABC)", "class Noise:\n    pass\n\n\nclass Schedule(ABC)")
    ],
    "sae_sweeps/measures.py": [
        (
            '    Measure("mse", ',
            '    Measure("l0_spread", "spread of L0", panel=Panel(), column=Column("L0 spread")),\n'
            '    Measure("mse", ',
        )
    ],
    "sae_sweeps/training/metrics.py": [
        ('        "l0_p5": low,', '        "l0_spread": high - low,\n        "l0_p5": low,')
    ],
}
NEW_FILES = {
    "sae_sweeps/noise.py": """
from typing import Annotated
from sae_sweeps.interfaces import Noise
from sae_sweeps.marks import Birth

class Silent(Noise):
    def __init__(self, *, level: Annotated[float, Birth(0.0)]) -> None:
        self.level = level
""",
    "conf/noise/silent.yaml": "_target_: sae_sweeps.noise.Silent\nlevel: 0.0\n",
}
"""An option of a variant, of two sections and of the root, a section, a group and a measure."""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a later version of the package."""
    root = tmp_path_factory.mktemp("release")
    for name in ("sae_sweeps", "conf", "hydra_plugins"):
        ignore = shutil.ignore_patterns("__pycache__", "embedded")
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignore)
    (root / "sae_sweeps/embedded").symlink_to(REPOSITORY / "sae_sweeps/embedded")
    for name, text in NEW_FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for name, changes in ADDED.items():
        change(root / name, *changes)
    return root


@pytest.fixture(scope="module")
def release(code: Path) -> Iterator[Launches]:
    """The later version's command."""
    launches = Launches(code)
    yield launches
    launches.close()


@contextmanager
def changed(path: Path, *changes: tuple[str, str]) -> Generator[None, None, None]:
    """Change a file for a while; commands read what they need of it when they start."""
    text = path.read_text()
    change(path, *changes)
    try:
        yield
    finally:
        path.write_text(text)


def change(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYNTHETIC)
def test_what_is_added_trains_and_measures_nothing_anew(
    study: Path, release: Launches, name: str
) -> None:
    before = stamps(study)
    done = release.run(study, *command(study, name))
    assert done.code == 0, done.err
    assert ": 0 runs to train, " in done.out and "measure" not in done.out
    assert stamps(study) == before


@pytest.mark.slow
def test_a_measure_that_is_added_is_absent_of_old_results_until_asked_for(
    study: Path, release: Launches
) -> None:
    words = [word for word in command(study, "six") if not word.startswith(("method=", "k="))]
    words += ["method=topk", "tracking=off"]
    done = release.run(study, *words, "k=2,3")
    assert "six: 1 run to train, 1 finished before" in done.out, done.err
    table = done.out.split("Sweep six")[1]
    assert "L0 spread" in table
    with (study / "outputs/six/pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = [row for row in rows if row["l0_spread"]]
    assert len(rows) == 13 and [row["k"] for row in told] == ["3.0"]
    done = release.run(study, *words, "k=2", "measure_anew=true")
    assert "six: 0 runs to train, 1 to measure anew" in done.out, done.err
    with (study / "outputs/six/pareto.csv").open(newline="") as file:
        assert sum(row["l0_spread"] != "" for row in csv.DictReader(file)) == 2


@pytest.mark.slow
def test_what_is_added_stops_no_run_on_its_way(study: Path, release: Launches) -> None:
    done = release.run(study, "status", "outputs/half", "--json")
    [said] = json.loads(done.out)
    assert {run["state"] for run in said["runs"]} == {"lost"}
    words = [word for word in command(study, "half") if not word.startswith("method=")]
    done = release.run(study, *words, "method=jumprelu")
    assert "2 runs to train, 2 of them from a checkpoint" in done.out, done.err


@pytest.mark.slow
def test_what_differs_from_its_birth_is_another_run(study: Path, release: Launches) -> None:
    words = [word for word in command(study, "six") if not word.startswith(("method=", "k="))]
    words += ["method=topk", "k=2"]
    done = release.run(study, *words, "allocator.jitter=0.0", "training.late=4096")
    assert "six: 0 runs to train, 1 finished before" in done.out, done.err
    done = release.run(study, *words, "allocator.jitter=0.5")
    assert "six: 1 run to train" in done.out, done.err
    done = release.run(study, *words, "allocator.jitter=0.5", "extra.width=4")
    assert "six: 1 run to train" in done.out, done.err


@pytest.mark.slow
def test_a_default_that_changes_makes_other_runs_and_is_told(
    study: Path, code: Path, release: Launches
) -> None:
    words = [word for word in typed(study, "six") if not word.startswith("method=")]
    with changed(code / "conf/optimizer/adam.yaml", ("lr: 3e-3", "lr: 6e-3")):
        done = release.run(study, *words, "method=topk", "tracking=off")
    assert "six: 2 runs to train" in done.out, done.err
    assert "optimizer.lr 0.006 (was 0.003)" in done.out.split("six: beside runs that differ in")[1]
    assert "stream.special_tokens False (was True)" in done.out
    assert len(list((study / "outputs/six/runs").iterdir())) == 14


@pytest.mark.slow
def test_an_algorithm_that_is_replaced_refuses_what_is_half_done(
    study: Path, code: Path, release: Launches
) -> None:
    where = (
        "class JumpReLU(Architecture):\n",
        "class JumpReLU(Architecture):\n    numerics = 2\n\n",
    )
    with changed(code / "sae_sweeps/architecture/jumprelu.py", where):
        done = release.run(study, "status", "outputs/six", "--json")
        assert json.loads(done.out)[0]["counts"]["done"] == 12
        assert release.run(study, "report", "outputs/six").code == 0
        done = release.run(study, "retry", "outputs/half")
        assert done.code == 1
        *_, line = done.err.splitlines()  # a hint may stand above
        assert "JumpReLU has numerics 2 now, and the run has 1" in line
        words = [word for word in command(study, "six") if not word.startswith("method=")]
        done = release.run(study, *words, "method=topk,jumprelu", "tracking=off")
        assert "six: 2 runs to train, 2 finished before" in done.out, done.err
        words = [word for word in typed(study, "six") if not word.startswith("method=")]
        done = release.run(study, *words, "method=jumprelu", "tracking=off")
        assert "architecture._numerics_ 2 (was None)" in done.out.split("differ in")[1]
