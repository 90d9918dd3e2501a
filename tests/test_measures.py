"""The table of measures has a row for every figure that runs leave, and no others."""

import json
from dataclasses import replace

import pytest

from sae_sweeps.measures import (
    FINAL,
    MEASURES,
    Column,
    Measure,
    Panel,
    describe,
    known,
    read,
)
from sae_sweeps.pareto import similarity
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from tests.support.small import small_run, train


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Run, Result]]:
    """Folder and result of a run on a model, and of one whose true features are known."""
    home = tmp_path_factory.mktemp("runs")
    runs = [small_run(home), small_run(home, "target_model=synthetic", "data=none")]
    results = [outcome for run in runs for outcome in train(run)]
    return [(run, r) for run, r in zip(runs, results, strict=True) if isinstance(r, Result)]


def names(kind: str) -> set[str]:
    return {measure.name for measure in MEASURES if measure.kind == kind}


def test_every_figure_of_evaluation_has_a_row_and_every_row_a_figure(
    outcomes: list[tuple[Run, Result]],
) -> None:
    assert len(outcomes) == 2
    assert set[str]().union(*(result.metrics for _, result in outcomes)) == set(FINAL)
    for run, result in outcomes:
        given = result.scalars.keys()
        assert names("batch") <= {name for name in given if name.startswith("batch_")}
        assert names("train") <= {name for name in given if name.startswith("train_")}
        assert all(names("row") <= row.figures.keys() for row in run.files.rows())
        assert result.measures == ()
    assert names("seeds") == {similarity.MEASURE}
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)


OWN = Measure(
    "gap",
    "gap between them",
    "nats",
    "lower",
    panel=Panel(sane=(0.0, 2.0), logarithmic=True),
    column=Column("gap", ".2f", 3, note="what it is"),
)


def test_a_description_is_read_back_as_it_was() -> None:
    for measure in (OWN, Measure("bare", "bare"), *MEASURES):
        kept = json.loads(json.dumps(describe(measure)))
        assert read(measure.name, kept) == replace(measure, kind="final", curve=None)


def test_what_a_later_version_says_besides_is_passed_over() -> None:
    kept = describe(OWN)
    kept["panel"] |= {"colour": "red"}
    kept["column"] |= {"width": 3}
    assert read("gap", kept | {"source": "elsewhere"}) == OWN


def test_results_bring_their_own_measures_and_change_none_of_ours() -> None:
    assert known([]) == list(MEASURES)
    assert known([OWN, OWN]) == [*MEASURES, OWN]
    assert known([replace(OWN, name="fvu")]) == list(MEASURES)


def test_a_wrong_number_format_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="format"):
        Column("gap", "four digits")
