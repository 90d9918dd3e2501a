"""What training asks of a GPU, counted on fake CUDA tensors: on a machine that has none."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import CONF

from .fake_cuda import ask, build
from .sizes import ALLOCATED, MOST_MS, PENALISED

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fake_cuda")]

MOST_OPERATORS = 110
ARCHITECTURES = sorted(path.stem for path in (CONF / "architecture").glob("*.yaml"))


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        tell = pytest.fail if os.environ.get("SAE_SWEEPS_NO_SKIPS") else pytest.skip
        tell("no g++ to build the guard with")
    return build(tmp_path_factory.mktemp("guard"))


def steps(guard: Path, *words: str) -> dict[tuple[str, int], dict[str, Any]]:
    """What a step asks for, by method and number of latents."""
    rows = ask(guard, "table", *words)
    return {(row["method"], row["d_sae"]): row for row in rows}


@pytest.fixture(scope="session")
def as_configured(guard: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return steps(guard, "0", ",".join((*ALLOCATED, *PENALISED)))


@pytest.mark.parametrize("method", [*ALLOCATED, *PENALISED])
def test_nobody_waits(method: str, as_configured: dict[tuple[str, int], dict[str, Any]]) -> None:
    rows = [row for (name, _), row in as_configured.items() if name == method]
    assert len(rows) == len(MOST_MS)
    assert all(row["waits"] == [] for row in rows)


@pytest.mark.parametrize("method", ALLOCATED)
def test_operators_are_few_and_passes_over_weights_too(
    method: str, as_configured: dict[tuple[str, int], dict[str, Any]]
) -> None:
    for d_sae, most in MOST_MS.items():
        row = as_configured[method, d_sae]
        assert row["operators"] <= MOST_OPERATORS, row["most"]
        assert row["ms"] <= most, row["dearest"]


def test_methods_add_floats_in_one_order(
    as_configured: dict[tuple[str, int], dict[str, Any]], variants: list[dict[str, Any]]
) -> None:
    """As configured, and so does every variant."""
    assert [(row["words"], row["in_any_order"]) for row in variants if row["in_any_order"]] == []
    assert [row["in_any_order"] for row in as_configured.values() if row["in_any_order"]] == []


def test_an_aux_loss_that_concerns_nothing_costs_nothing(
    guard: Path, as_configured: dict[tuple[str, int], dict[str, Any]]
) -> None:
    without = steps(guard, "0", "topk", "aux_loss=none")
    for key, row in without.items():
        assert row["ms"] <= as_configured[key]["ms"] <= 1.02 * row["ms"]


def test_dead_latents_alone_are_looked_at(
    guard: Path, as_configured: dict[tuple[str, int], dict[str, Any]]
) -> None:
    """With one in twenty dead a step takes half as long again, not the sevenfold of all latents."""
    for key, row in steps(guard, "0.05", "topk").items():
        assert row["waits"] == []
        assert 1.1 < row["ms"] / as_configured[key]["ms"] < 1.7


def test_what_waits_is_counted(guard: Path) -> None:
    """Listing a penalty's pairs waits for their number: the counter sees it."""
    for row in steps(guard, "0", "relu", "engine=sparse").values():
        assert len(row["waits"]) == 4


@pytest.mark.parametrize("method", [*ALLOCATED, *PENALISED])
def test_time_is_what_the_plan_says(
    method: str, as_configured: dict[tuple[str, int], dict[str, Any]]
) -> None:
    """Products and passes of a plan's roofline are those that the counter finds."""
    for d_sae in MOST_MS:
        row = as_configured[method, d_sae]
        assert row["planned_ms"] == pytest.approx(row["ms"], rel=0.16)


@pytest.mark.parametrize("method", [*ALLOCATED, *PENALISED])
def test_memory_is_what_the_formula_says(
    method: str, as_configured: dict[tuple[str, int], dict[str, Any]]
) -> None:
    for d_sae in MOST_MS:
        row = as_configured[method, d_sae]
        assert row["planned_bytes"] == pytest.approx(row["peak_bytes"], rel=0.1)


@pytest.fixture(scope="session")
def architectures(guard: Path) -> list[dict[str, Any]]:
    """Each alone, with an allocator, and with one whose pairs are not listed."""
    kinds = (["relu"], ["topk"], ["topk", "engine=dense"])
    tables = [[*kind, f"architecture={name}"] for name in ARCHITECTURES for kind in kinds]
    return ask(guard, "table", "0", *" + ".join(map(" ".join, tables)).split())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_and_time_of_every_architecture_are_what_is_planned(
    architecture: str, architectures: list[dict[str, Any]]
) -> None:
    rows = [row for row in architectures if f"architecture={architecture}" in row["words"]]
    assert len(rows) == 9
    for row in rows:
        assert row["planned_bytes"] == pytest.approx(row["peak_bytes"], rel=0.1), row["words"]
        assert row["planned_ms"] == pytest.approx(row["ms"], rel=0.16), row["words"]


# --- All variants --------------------------------------------------------------------------

ONCE = "engine/zipf.py"
"""Zipf's shares are copied to the device at the first step of a process."""
COUNTED = {"engine/ranking.py", "engine/affinities.py"}
"""Where pairs of a penalty are listed, with engine=sparse."""


@pytest.fixture(scope="session")
def variants(guard: Path) -> list[dict[str, Any]]:
    return ask(guard, "variants", "some")


def test_every_pair_of_variants_trains_and_is_measured(variants: list[dict[str, Any]]) -> None:
    assert len(variants) >= 50
    assert [found["failed"] for found in variants if "failed" in found] == []
    assert not [found["refused"] for found in variants if "refused" in found]


def test_variants_wait_only_where_a_penalty_s_pairs_are_counted(
    variants: list[dict[str, Any]],
) -> None:
    for found in variants:
        places = {wait.partition(":")[0] for wait in found["waits"]} - {ONCE}
        listed = {"allocator=none", "engine=sparse"} <= set(found["words"])
        assert places == (COUNTED if listed else set()), found
