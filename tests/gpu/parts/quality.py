"""FVU after 400 steps: as configured, with dense products, and with these in float32.

On made-up activations from a file, which every way is given in the same order, all in one pack.
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.gpu.sizes import Size

from .ours import fvu, main, trained
from .place import Place

METHODS = ("topk", "mutual_choice", "feature_choice", "jumprelu")
EXACT = "float32"
WAYS = {
    EXACT: ("engine=dense", "training.precision=float32"),
    "auto": ("engine=auto",),
    "dense": ("engine=dense",),
}
SIZE, TOY = Size(384, 12_288, 2_048, 8), Size(16, 128, 64, 8)
STEPS, TOY_STEPS = 400, 8
BATCHES = 64
"""In the file, which is read again and again."""


def measure(here: Place) -> None:
    """All ways of a method in one pack; the first method is what most runs are of."""
    with tempfile.TemporaryDirectory() as home:
        size = TOY if here.rehearsal else SIZE
        tokens = here.batch(size._replace(batch=BATCHES * size.batch))
        path = Path(home) / "activations.npy"
        np.save(path, tokens.cpu().numpy())
        del tokens
        for method in METHODS:
            with here.cell(method=method):
                compared(here, method, options(here, path, size), Path(home) / method)


def compared(here: Place, method: str, common: list[str], home: Path) -> None:
    """Train all ways of a method; each in a folder of its own, since they are the same run."""
    every = {home / way: [f"method={method}", *common, *own] for way, own in WAYS.items()}
    found = dict(zip(WAYS, map(fvu, trained(here, every)), strict=True))
    for way, value in found.items():
        percent = 100 * abs(value / found[EXACT] - 1)
        here.tell(method=method, way=way, fvu=value, percent_off=percent)


def options(here: Place, path: Path, size: Size) -> list[str]:
    """Of a run on the activations in a file."""
    steps = TOY_STEPS if here.rehearsal else STEPS
    few = 4 * size.batch  # a tenth of the file is held out
    return [
        *("target_model=activations", f"target_model.path={path}", "stream.repeat=true"),
        *(f"d_sae={size.d_sae}", f"k={size.k}", f"training.tokens={steps * size.batch}"),
        *(f"stream.batch_tokens={size.batch}", f"stream.chunk_tokens={few}"),
        *(f"stream.calibration_tokens={few}", f"evaluation.tokens={few}"),
        "evaluation.ce_tokens=0",
    ]


if __name__ == "__main__":
    main(measure)
