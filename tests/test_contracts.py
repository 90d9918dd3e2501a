"""What every variant must do; an option file in conf/ is tested by being there."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from safetensors.torch import load_file, save_file

from sae_sweeps.config.options import RunConfig
from sae_sweeps.interfaces import Architecture
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer
from tests.support.places import CONF
from tests.support.small import small_run

D_IN, BATCH = 8, 512


def option_files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


ARCHITECTURES = option_files("architecture")
ALLOCATORS = option_files("allocator")
AUX_LOSSES = option_files("aux_loss")


def test_variants_were_found() -> None:
    assert len(ARCHITECTURES) >= 3
    assert len(ALLOCATORS) >= 7
    assert len(AUX_LOSSES) >= 3


def trained(config: RunConfig, steps: int) -> Trainer:
    """A run's SAE after some steps on noise."""
    generator = torch.Generator().manual_seed(0)
    sae = new_sae(config, D_IN)
    sae.initialise(generator, torch.zeros(D_IN))
    trainer = new_trainer(config, sae)
    for _ in range(steps):
        figures = trainer.step(torch.randn(BATCH, D_IN, generator=generator) * 0.3, wanted=True)
        assert all(value.isfinite() for value in figures.values()), figures
    return trainer


def assert_same(one: Architecture, other: Architecture, x: torch.Tensor) -> None:
    dead = torch.zeros(one.W_dec.shape[0], dtype=torch.bool)
    for training in (True, False):
        with torch.no_grad():
            ours, theirs = one.train(training)(x, dead), other.train(training)(x, dead)
        assert ours.acts.dense().equal(theirs.acts.dense())
        assert ours.recon.equal(theirs.recon)


def cells() -> Iterator[ParameterSet]:
    """All combinations; those that are not slow have every pair of options, as a Latin square."""
    groups = (enumerate(group) for group in (ARCHITECTURES, ALLOCATORS, AUX_LOSSES))
    for cell in product(*groups):
        fast = sum(index for index, _ in cell) % len(AUX_LOSSES) == 0
        names = [name for _, name in cell]
        yield pytest.param(*names, marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize(("architecture", "allocator", "aux_loss"), list(cells()))
def test_trains_saves_and_reloads(
    architecture: str, allocator: str, aux_loss: str, tmp_path: Path
) -> None:
    chosen = [f"architecture={architecture}", f"allocator={allocator}", f"aux_loss={aux_loss}"]
    config = small_run(tmp_path, *chosen).config
    trainer = trained(config, 4)
    before = new_sae(config, D_IN)
    before.initialise(torch.Generator().manual_seed(0), torch.zeros(D_IN))
    assert not trainer.sae.W_enc.equal(before.W_enc)

    state = {name: tensor.contiguous() for name, tensor in trainer.sae.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = new_sae(config, D_IN)
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1)) * 0.3
    assert_same(trainer.sae, loaded, x)
    # Rescaling there and back, by a power of two, changes nothing.
    loaded.rescale(4.0)
    assert_same_codes_at_another_scale(trainer.sae, loaded, x, 4.0)


def assert_same_codes_at_another_scale(
    one: Architecture, other: Architecture, x: torch.Tensor, factor: float
) -> None:
    dead = torch.zeros(one.W_dec.shape[0], dtype=torch.bool)
    with torch.no_grad():
        ours, theirs = one.eval()(x, dead), other.eval()(x * factor, dead)
    torch.testing.assert_close(
        theirs.acts.dense(), ours.acts.dense() * factor, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(theirs.recon, ours.recon * factor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("allocator", [name for name in ALLOCATORS if name != "none"])
def test_inference_needs_no_batch(allocator: str, tmp_path: Path) -> None:
    config = small_run(tmp_path, f"allocator={allocator}").config
    sae = trained(config, 4).sae.eval()
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1)) * 0.3
    dead = torch.zeros(sae.W_dec.shape[0], dtype=torch.bool)
    with torch.no_grad():
        together = sae(x, dead).acts.dense()
        apart = torch.cat([sae(token[None], dead).acts.dense() for token in x])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
