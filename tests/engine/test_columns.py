"""Each latent's largest entries as an accelerator finds them, against sorting each column."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.engine.columns import Columns, grouped

CPU = torch.device("cpu")


def drawn(batch: int, d_sae: int, seed: int) -> Tensor:
    """Values without ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(batch * d_sae, generator=generator).float().view(batch, d_sae)


def naive(values: Tensor, budgets: list[int]) -> list[int]:
    found = [
        int(token) * len(budgets) + latent
        for latent, budget in enumerate(budgets)
        for token in values[:, latent].argsort(descending=True)[:budget]
    ]
    return sorted(found)


@given(data=st.data(), batch=st.integers(1, 300), d_sae=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_column_s_largest(data: st.DataObject, batch: int, d_sae: int, seed: int) -> None:
    exact = st.floats(0, batch)
    most = torch.tensor(data.draw(st.lists(exact, min_size=d_sae, max_size=d_sae))).ceil().long()
    columns = Columns(most, batch, CPU)
    for turn in range(3):
        # Rounded otherwise each time, as stochastic rounding does; asked for twice, too.
        down = data.draw(st.lists(st.booleans(), min_size=d_sae, max_size=d_sae))
        budgets = (most - torch.tensor(down).long()).clamp(min=0)
        for again in range(2):
            values = drawn(batch, d_sae, seed + 10 * turn + again)
            found = columns.largest(values, budgets, int(budgets.sum()))
            assert found.tolist() == naive(values, budgets.tolist())


def test_most_latents_are_ranked_once_and_not_deep() -> None:
    groups, latents, places = grouped(torch.tensor([200, 3, 2, 0, 15, 3000]), 4096)
    assert [(deep, some.tolist()) for deep, some in groups] == [
        (15, [0, 1, 2, 3, 4, 5]),
        (200, [0]),
        (3000, [5]),
    ]
    assert len(latents) == len(places) == 6 * 15 + 200 + 3000
    first = places[:90].view(6, 15)
    assert first[1].tolist() == first[4].tolist() == list(range(15))
    assert first[0].min() >= 200 and first[5].min() >= 3000  # their places come further down


def test_without_any_budget_nothing_is_chosen() -> None:
    none = torch.zeros(4, dtype=torch.int64)
    assert Columns(none, 7, CPU).largest(drawn(7, 4, 0), none, 0).shape == (0,)
