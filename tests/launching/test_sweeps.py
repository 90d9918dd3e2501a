"""Every study in conf/sweep can be composed and passes the rules, at each value of each axis."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from sae_sweeps.config.check import checked
from sae_sweeps.config.rules import obey
from tests.support.places import CONF

SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_axis_value_is_allowed(sweep: str) -> None:
    base = composed(f"+sweep={sweep}")
    assert base.name == sweep
    axes = {key: str(value).split(",") for key, value in base.hydra.sweeper.params.items()}
    first = {key: values[0] for key, values in axes.items()}
    assert sum(map(len, axes.values())) > len(axes)
    for key, values in axes.items():
        for value in values:
            point = [f"{k}={v}" for k, v in (first | {key: value}).items()]
            obey(checked(composed(f"+sweep={sweep}", *point)))
