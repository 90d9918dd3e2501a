"""FVU after 400 steps: as configured, with dense products, and with these in float32.

On made-up activations, which every way is given in the same order, all in one pack.
"""

import tempfile
from pathlib import Path

from .ours import fvu, main, trained
from .place import Place

METHODS = ("topk", "mutual_choice", "feature_choice", "jumprelu")
EXACT = "float32"
WAYS = {
    EXACT: ("engine=dense", "training.precision=float32"),
    "auto": ("engine=auto",),
    "dense": ("engine=dense",),
}
STEPS = 400


def measure(here: Place) -> None:
    """All ways of a method in one pack; the first method is what most runs are of."""
    for method in METHODS:
        with here.cell(method=method), tempfile.TemporaryDirectory() as home:
            # A run is the same run to its folder, whatever the engine.
            every = {
                Path(home) / way: [f"method={method}", *options(here), *own]
                for way, own in WAYS.items()
            }
            found = dict(zip(WAYS, map(fvu, trained(here, every)), strict=True))
            for way, value in found.items():
                percent = 100 * abs(value / found[EXACT] - 1)
                here.tell(method=method, way=way, fvu=value, percent_off=percent)


def options(here: Place) -> list[str]:
    """Of a run on synthetic activations of width 384."""
    batch, d_in, d_sae, steps = (64, 16, 128, 8) if here.rehearsal else (2048, 384, 12_288, STEPS)
    return [
        *("target_model=synthetic", f"target_model.d_in={d_in}", "target_model.features=2000"),
        *("target_model.l0=20", "target_model.noise=0.5", f"d_sae={d_sae}", "k=8"),
        *(f"stream.batch_tokens={batch}", f"stream.chunk_tokens={8 * batch}"),
        *(f"stream.calibration_tokens={8 * batch}", f"training.tokens={steps * batch}"),
        f"evaluation.tokens={8 * batch}",
    ]


if __name__ == "__main__":
    main(measure)
