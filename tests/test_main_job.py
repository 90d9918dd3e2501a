"""The main job as a user runs it: what it reached, what it left, and that company is no matter.

MAIN_JOB names the folder of a finished one; without it the job is run here.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sae_sweeps.record.result import Result
from tests.support.wandb_offline import read_all

TOKENS = "training.tokens=655360"
"""As the main job's."""
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("main_job")]

METHODS = ("relu", "gated", "jumprelu", "topk", "mutual_choice", "feature_choice")


def sae_sweeps(place: Path, *words: str) -> int:
    command = [sys.executable, "-m", "sae_sweeps", *words]
    return subprocess.run(command, cwd=place, check=False, timeout=1200).returncode


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`outputs/pareto` of a main job, mirrored offline."""
    if "MAIN_JOB" in os.environ:
        return Path(os.environ["MAIN_JOB"])
    place = tmp_path_factory.mktemp("main")
    assert sae_sweeps(place, "-m", "+sweep=pareto", "tracking.mode=offline") == 0
    return place / "outputs" / "pareto"


@pytest.fixture(scope="module")
def results(job: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in job.glob("runs/*/result.json")]


def by_method(results: list[dict[str, Any]]) -> dict[str, dict[float, dict[str, Any]]]:
    found: dict[str, dict[float, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        found[result["choices"]["method"]][result["k"]] = result
    return found


def test_it_trains_what_it_promises(results: list[dict[str, Any]]) -> None:
    assert {(r["choices"]["method"], r["k"]) for r in results} == {
        (method, k) for method in METHODS for k in (4, 8, 16, 32)
    }
    for result in results:
        assert result["tokens"] >= 300_000
        assert result["d_sae"] == 1024
        assert result["evaluation"]["ce_tokens"] >= 16_000


def test_every_run_meets_its_k(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["metrics"]["l0"] == pytest.approx(result["k"], rel=0.1), result["run"]


def test_steered_coefficients_settle_and_freeze(job: Path, results: list[dict[str, Any]]) -> None:
    """Near the target once the learning rate falls; the coefficient is fixed over the last 20 %."""
    for method in ("relu", "gated"):
        for k, result in by_method(results)[method].items():
            lines = (job / "runs" / result["run"] / "metrics.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            late = [row for row in rows if row["tokens"] >= 0.7 * result["tokens"]]
            assert len(late) >= 15
            for row in late:
                assert row["train/l0"] == pytest.approx(k, rel=0.15), (result["run"], row["tokens"])
            last = [row for row in rows if row["tokens"] > 0.81 * result["tokens"]]
            assert len({row["train/l1_coef"] for row in last}) == 1


def test_fvu_falls_with_k_for_every_method(results: list[dict[str, Any]]) -> None:
    for method, runs in by_method(results).items():
        fvus = [runs[k]["metrics"]["fvu"] for k in sorted(runs)]
        assert fvus == sorted(fvus, reverse=True), method


def test_token_and_mutual_choice_reconstruct_well(results: list[dict[str, Any]]) -> None:
    for method in ("topk", "mutual_choice"):
        figures = by_method(results)[method][16]["metrics"]
        assert figures["fvu"] <= 0.16
        assert figures["ce_recovered"] >= 0.94


def test_feature_choice_has_no_dead_latents(results: list[dict[str, Any]]) -> None:
    for result in by_method(results)["feature_choice"].values():
        assert result["train"]["dead_frac"] == 0
        assert result["train"]["dead_window_tokens"] >= 50_000
        assert result["metrics"]["dead_frac"] <= 0.02  # batch-free, held out


def test_it_leaves_its_report(job: Path) -> None:
    assert (job / "pareto.png").stat().st_size > 50_000
    assert len((job / "pareto.csv").read_text().splitlines()) == 25
    page = (job / "report.html").read_text()
    content = json.loads(page.partition('id="content">')[2].partition("</script>")[0])
    assert len(content["runs"]) == 24 and content["options"][0] == "curve"
    for run in content["runs"]:
        assert sum(run["density"]["counts"]) == 1024
        assert sum(run["l0s"]["counts"]) == run["row"]["evaluation_tokens"]
        assert run["training"]["tokens"][-1] == run["row"]["tokens"]
    assert sum(len(pack["runs"]) for pack in content["packs"]) == 24
    for pack in content["packs"]:  # other work on the machine may have had most of it
        assert pack["cpu_hours"] >= 0.3 * pack["hours"]
    [launch] = content["sweeps"][0]["launches"]
    assert "+sweep=pareto" in launch["command"] and "torch" in launch["packages"]
    for run in job.glob("runs/*"):
        assert {path.name for path in run.iterdir()} >= {
            "config.yaml",
            "overrides.yaml",
            "run.log",
            "metrics.jsonl",
            "result.json",
            "checkpoint",
            "sae",
        }


def test_wandb_mirrors_every_row_and_figure(job: Path, results: list[dict[str, Any]]) -> None:
    runs = read_all(job / "wandb")
    assert len(runs) == 25
    assert runs["pareto-summary"].fields["job_type"] == "sweep-summary"
    for result in results:
        run = runs[result["run"]]
        assert run.fields["group"] == "pareto"
        rows = [
            json.loads(line)
            for line in (job / "runs" / result["run"] / "metrics.jsonl").read_text().splitlines()
        ]
        logged = [
            {key: value for key, value in row.items() if not key.startswith("_")}
            for row in run.rows
        ]
        assert logged == [
            {"tokens_seen": row["tokens"]} | {k: v for k, v in row.items() if k != "tokens"}
            for row in rows
        ]
        for key, value in Result.of(result).scalars.items():
            assert run.summary[f"final/{key}"] == value


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_file(run / "checkpoint" / "weights.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), f"{one.name}: {name}"


def test_a_run_that_is_soon_alone_has_the_weights_it_has_packed(job: Path, tmp_path: Path) -> None:
    """The run beside it fails in its first steps, and 23 others are missing."""
    method = ("method=feature_choice", "optimizer.lr=3e-3,1e30")
    assert sae_sweeps(tmp_path, *method, "k=16", TOKENS, "name=beside", "tracking=off") == 2
    runs = list((tmp_path / "outputs" / "beside" / "runs").iterdir())
    assert len(runs) == 2
    [healthy] = [run for run in runs if (run / "result.json").exists()]
    [failed] = [run for run in runs if (run / "failed.json").exists()]
    assert "Traceback" in (failed / "run.log").read_text()
    assert_same_weights(healthy, job / "runs" / healthy.name)
