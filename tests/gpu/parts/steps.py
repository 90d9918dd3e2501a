"""`Trainer.step` of all methods: time, host's time, waits, kernels, and the peak of memory."""

import warnings
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import torch

from sae_sweeps.planning.gpus import GPUS, USUAL, named
from sae_sweeps.planning.memory import of_run
from sae_sweeps.planning.roofline import step_s
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer
from tests.gpu.agenda import AS_CONFIGURED
from tests.gpu.runs import METHODS, config_of
from tests.gpu.sizes import Size

from .ours import main, words
from .place import Place, kernels

DEAD = 0.05
"""Share of latents that are made dead."""
BATCHES = 4
"""That take turns."""
LONG_AGO = 2**40
WAITS = "called a synchronizing CUDA operation"
"""What PyTorch warns of, in these words; of the mode itself it warns as well."""
AUX = {AS_CONFIGURED: (), "none": ("aux_loss=none",), f"{DEAD:.0%} dead": ()}
"""What of the aux loss there is, and the words for it."""


def measure(here: Place) -> None:
    """Token choice in all its forms at each size, then the other methods."""
    x = torch.randn(64, 64, device=here.device)
    for dtype in (torch.float32, torch.bfloat16):
        torch.mm(x.to(dtype), x.to(dtype))  # the product's workspaces are of no step
    for method in METHODS:
        for name, size in here.sizes.items():
            for aux in AUX if method == "topk" else (AS_CONFIGURED,):
                about = {"method": method, "size": name, "aux": aux}
                about["step"] = f"{method}, aux loss {aux}"
                with here.cell(**about):
                    here.tell(**about, **step(here, size, method, aux))


def trainer_on(here: Place, size: Size, *options: str) -> Trainer:
    """The trainer of the run that options describe; its weights are drawn on the device."""
    config = config_of(size, *words(here), *options)
    sae = new_sae(config, size.d_in, torch.device("cuda")).to(here.device)
    draw = torch.Generator(here.device).manual_seed(0)
    sae.initialise(draw, torch.zeros(size.d_in, device=here.device))
    return new_trainer(config, sae)


def step(here: Place, size: Size, method: str, aux: str) -> dict[str, Any]:
    """The figures of a step."""
    options = [f"method={method}", *METHODS[method], *AUX[aux]]
    before = torch.cuda.memory_allocated() if here.device.type == "cuda" else 0
    trainer = trainer_on(here, size, *options)
    batches = [here.batch(size, seed) for seed in range(BATCHES)]
    dead = int(DEAD * size.d_sae) if "dead" in aux else 0
    turn = 0

    def mark() -> None:
        trainer.tokens_since_fired[:dead] = LONG_AGO

    def work() -> None:
        nonlocal turn
        mark()
        trainer.step(batches[turn % BATCHES], wanted=False)
        turn += 1

    for _ in range(2):  # Adam's moments come to be
        work()
    config = config_of(size, *options)
    memory = of_run(config, size.d_in)
    peak = peak_bytes(here, work, before + sum(x.nbytes for x in batches[1:]))
    planned = memory.held + memory.step
    found: dict[str, Any] = {"peak_bytes": peak, "planned_bytes": planned}
    if peak is not None:
        found["percent_off_plan"] = 100 * abs(planned / peak - 1)
    places = waits(here, work)
    found |= {"waits": len(places), "waits_at": places}
    found["ms"] = here.milliseconds(work)
    found["host_ms"] = here.host_milliseconds(work)
    if here.device.type == "cuda":
        gpu = GPUS[named(torch.cuda.get_device_name()) or USUAL]
        found["planned_ms"] = 1e3 * step_s(config, size.d_in, gpu)
        found["percent_off_roofline"] = 100 * abs(found["planned_ms"] / found["ms"] - 1)
    inside = kernels(here, work)
    found |= {"kernel_ms": inside.ms, "kernels": inside.launched, "dearest": inside.dearest}
    mark()  # else those that fired just now would not count
    return found | {"dead": int(trainer.dead.count_nonzero()), "bfloat16": trainer.bfloat16}


def peak_bytes(here: Place, work: Callable[[], None], others: int) -> int | None:
    """What tensors take at most in a step, the weights included, and `others` left out."""
    if here.device.type != "cuda":
        return None
    here.settle()
    torch.cuda.reset_peak_memory_stats()
    work()
    here.settle()
    return torch.cuda.max_memory_allocated() - others


def waits(here: Place, work: Callable[[], None]) -> list[str]:
    """Where the host waits for the device in a step, as PyTorch sees it: not in `torch.sparse`."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if here.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            if here.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    found = [each for each in seen if WAITS in str(each.message)]
    return [f"{PurePath(each.filename).name}:{each.lineno}" for each in found]


if __name__ == "__main__":
    main(measure)
