"""Reads `sae/` folders with SAELens, in a virtual environment of its own: read.py JOBS.json.

JOBS.json names the activations to encode, and for each folder where to write codes, reconstruction
and what SAELens makes of the metadata.
"""

import json
import sys
from pathlib import Path
from typing import Any

import sae_lens  # pyright: ignore[reportMissingImports]
import torch
from safetensors.torch import load_file, save_file

METADATA = ("hook_name", "model_name", "model_class_name", "context_size", "prepend_bos", "l0")


@torch.no_grad()
def read(folder: str, x: torch.Tensor, out: Path) -> None:
    """Encode and decode `x` with the SAE in `folder`."""
    sae: Any = sae_lens.SAE.load_from_disk(folder)
    codes = sae.encode(x)
    out.mkdir(parents=True)
    save_file({"codes": codes, "recon": sae.decode(codes)}, out / "out.safetensors")
    metadata = sae.cfg.metadata
    kept = {name: getattr(metadata, name) for name in METADATA}
    kept |= {"architecture": sae.cfg.architecture(), "sae_sweeps": metadata.sae_sweeps}
    (out / "metadata.json").write_text(json.dumps(kept))


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    x = load_file(jobs["activations"])["x"]
    for folder, out in jobs["folders"].items():
        read(folder, x, Path(out))


if __name__ == "__main__":
    main()
