"""What machine it is, and which of the packages that parts need are there in which version."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from .place import Place, main

PACKAGES = (
    *("triton", "numpy", "scipy", "transformers", "tokenizers", "safetensors", "huggingface-hub"),
    *("accelerate", "jaxtyping", "einops", "filelock", "matplotlib", "pandas", "rich", "tqdm"),
    *("hydra-core", "omegaconf", "transformer-lens", "annotated-types", "beartype"),
)
QUERY = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,power.limit"


def measure(here: Place) -> None:
    """A row of the machine, one of packages, one of what torch knows of the device."""
    here.tell(
        what="machine",
        **(device() if here.device.type == "cuda" else {"gpu": None}),
        driver=smi().get("driver_version"),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        triton=version("triton"),
        cores=len(os.sched_getaffinity(0)),
        system=platform.platform(),
    )
    here.tell(what="packages", **{name: version(name) for name in PACKAGES})
    here.tell(what="nvidia-smi", **smi())


def device() -> dict[str, Any]:
    """What torch knows of the device."""
    known = torch.cuda.get_device_properties(0)
    return {
        "gpu": known.name,
        "memory_bytes": known.total_memory,
        "multiprocessors": known.multi_processor_count,
        "capability": f"{known.major}.{known.minor}",
    }


def smi() -> dict[str, str]:
    """What the driver's own tool says of the first device; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"failed": str(error)}
    lines = done.stdout.strip().splitlines()
    return dict(zip(QUERY.split(","), lines[0].split(", "), strict=False)) if lines else {}


def version(name: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(measure)
