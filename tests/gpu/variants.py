"""Trains and measures combinations of variants on fake CUDA tensors; a JSON object for each.

Fake tensors refuse what CUDA would: operands on two devices, types that an operator lacks.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from sae_sweeps.errors import ConfigError
from sae_sweeps.training import evaluation
from tests.support.places import CONF

from .counting import Asked
from .fake_cuda import fake_cuda
from .sizes import Size
from .steps import GPU, fakeable, trainer_on

SMALL = Size(d_in=16, d_sae=64, batch=32, k=4)
ENGINES = ("sparse", "dense", "auto")


def option_files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def combinations(every: bool) -> Iterator[dict[str, str]]:
    """All combinations, or so few of these that each pair of options is in one."""
    groups = ("architecture", "allocator", "aux_loss", "resampling")
    numbered = [list(enumerate(names)) for names in (*map(option_files, groups), ENGINES)]
    for cell in product(*numbered):
        architecture, allocator, *others = (number for number, _ in cell)
        drawn = [
            (architecture + allocator) % 3,
            (architecture // 2 + allocator) % 2,
            (architecture + 2 * allocator) % 3,
        ]
        if every or others == drawn:
            yield dict(zip((*groups, "engine"), (name for _, name in cell), strict=True))


def tried(words: list[str]) -> dict[str, Any]:
    """What becomes of two training steps, figures, both evaluations and SAELens' layout."""
    try:
        with fake_cuda():
            trainer = trainer_on(GPU, SMALL, *words)
            x = torch.randn(SMALL.batch, SMALL.d_in, device=GPU)
            with Asked() as asked:
                trainer.step(x, wanted=False)
                waits, in_any_order = list(asked.waits), sorted(asked.in_any_order)
                trainer.step(x, wanted=True)
                for mode in (False, True):
                    zero = torch.zeros(SMALL.d_in, device=GPU)
                    held_out = x.repeat(4, 1)
                    evaluation.measure(trainer.sae.train(mode), held_out, zero, SMALL.batch)
                trainer.sae.rescale(2.0)
                trainer.sae.saelens()
    except ConfigError as refused:
        return {"words": words, "refused": str(refused)}
    except Exception:
        return {"words": words, "failed": traceback.format_exc()}
    return {"words": words, "waits": waits, "in_any_order": in_any_order}


def main() -> None:
    """`variants some|all`"""
    fakeable(dead=5)
    for chosen in combinations(every=sys.argv[1] == "all"):
        found = tried([f"{group}={option}" for group, option in chosen.items()])
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
