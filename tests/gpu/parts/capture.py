"""A token step of few latents, captured in a CUDA graph and replayed, beside an eager one.

A graph repeats what the device did; what Python decides, it does not. So this tells what launches
cost, and not yet how to train.
"""

from collections.abc import Callable

import torch

from sae_sweeps.training.trainer import Trainer
from tests.gpu.sizes import Size

from .ours import main
from .place import Place, kernels
from .steps import AUX, trainer_on

SIZE, TOY = Size(768, 2_048), Size(16, 64, 64, 4)
WARM = 5
OPTIONS = {"none": AUX["none"], "aux_k": ()}
"""aux_k asks the device how many latents are dead, which cannot be captured as it is."""


def measure(here: Place) -> None:
    """Without aux loss, which should be possible, and as configured."""
    size = TOY if here.rehearsal else SIZE
    for aux, options in OPTIONS.items():
        with here.cell(aux=aux):
            trainer = trainer_on(here, size, "method=topk", *options)
            x = here.batch(size)

            def step(trainer: Trainer = trainer, x: torch.Tensor = x) -> None:
                trainer.step(x, wanted=False)

            eager = here.milliseconds(step)
            inside = kernels(here, step)
            here.tell(aux=aux, eager_ms=eager, kernel_ms=inside.ms, kernels=inside.launched)
            if here.device.type != "cuda":
                here.tell(aux=aux, left_out="only CUDA captures: the eager half alone was run")
                continue
            graph = captured(step)
            replayed = here.milliseconds(graph.replay)
            told = {"replayed_over_eager": replayed / eager} if aux == "none" else {}
            here.tell(aux=aux, replayed_ms=replayed, **told)


def captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A step's work on the device, as a graph.

    Raises:
        RuntimeError: something in it cannot be captured, such as to wait for a number.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


if __name__ == "__main__":
    main(measure)
