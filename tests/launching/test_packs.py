"""A sweep's runs divided into packs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.launching.packs import divided
from sae_sweeps.record.identity import pass_identity, stream_identity
from sae_sweeps.record.run import Run
from tests.support.small import small_run

BASE = small_run(Path("unused"))


def run(name: str, hook: str, d_sae: int, model: str = "embedded") -> Run:
    """A run that differs from another in its hook and how dear it is."""
    node = BASE.config.nodes["target_model"] | {"hook": hook, "model": model}
    nodes = BASE.config.nodes | {"target_model": node}
    return replace(BASE, name=name, config=replace(BASE.config, nodes=nodes, d_sae=d_sae))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from([8, 16, 1024])),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_every_run_is_in_one_of_as_few_packs_as_hold_them(
    given: list[tuple[str, int]], at_most: int
) -> None:
    runs = [run(str(index), hook, d_sae) for index, (hook, d_sae) in enumerate(given)]
    packs = divided([runs], at_most)
    assert Counter(one.name for pack in packs for one in pack) == Counter(r.name for r in runs)
    assert len(packs) == -(-len(runs) // at_most)
    assert all(1 <= len(pack) <= at_most for pack in packs)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(1, 9))
def test_a_pack_has_as_few_hooks_as_can_be(hooks: list[str], at_most: int) -> None:
    """Hooks are laid end to end, so that each cut between packs parts one hook at most."""
    packs = divided([[run(str(i), hook, 8) for i, hook in enumerate(hooks)]], at_most)
    shared = sum(len({one.config.tree["target_model"]["hook"] for one in pack}) for pack in packs)
    assert shared <= len(set(hooks)) + len(packs) - 1
    if len(set(hooks)) > 1:
        assert max(map(len, packs)) - min(map(len, packs)) <= 1


def test_a_dear_run_has_a_pack_for_itself() -> None:
    runs = [run("dear", "a", 64), *(run(str(i), "a", 8) for i in range(8))]
    assert sorted(len(pack) for pack in divided([runs], 8)) == [1, 8]


def test_passes_are_never_mixed() -> None:
    runs = [[run(f"{model}{i}", "a", 8, model) for i in range(3)] for model in ("x", "y")]
    assert [len(pack) for pack in divided(runs, 8)] == [3, 3]


def test_runs_at_several_hooks_share_a_pass_and_no_stream() -> None:
    one, other = run("1", "a", 8), run("2", "b", 16)
    assert pass_identity(one.config) == pass_identity(other.config)
    assert stream_identity(one.config) != stream_identity(other.config)
    assert pass_identity(one.config) != pass_identity(run("3", "a", 8, "other").config)


def d_sae_of(pack: Sequence[Run]) -> int:
    return sum(one.config.d_sae for one in pack)


def test_packs_fit_where_they_can() -> None:
    """Parts get smaller until each fits; what fits nowhere is alone."""
    runs = [run(str(i), "a", d_sae) for i, d_sae in enumerate([64, 8, 8, 8, 8, 8])]
    packs = divided([runs], 8, lambda pack: d_sae_of(pack) <= 17)
    assert sorted(map(d_sae_of, packs)) == [8, 16, 16, 64]
    assert [len(pack) for pack in divided([runs], 8, lambda _: False)] == [1] * 6
    assert [len(pack) for pack in divided([runs], 8)] == [6]


@given(
    st.lists(st.sampled_from([8, 16, 64]), min_size=1, max_size=20),
    st.lists(st.sampled_from("ab"), min_size=20, max_size=20),
    st.integers(8, 200),
)
def test_no_run_is_lost_for_lack_of_room(sizes: list[int], hooks: list[str], room: int) -> None:
    runs = [run(str(i), hooks[i], d_sae) for i, d_sae in enumerate(sizes)]
    packs = divided([runs], 6, lambda pack: d_sae_of(pack) <= room)
    assert Counter(one.name for pack in packs for one in pack) == Counter(r.name for r in runs)
    assert all(len(pack) == 1 or (d_sae_of(pack) <= room and len(pack) <= 6) for pack in packs)
