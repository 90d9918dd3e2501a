"""The weights that a finished run leaves, and the same for SAELens."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_sweeps.interfaces import Architecture, TargetModel
from sae_sweeps.record.result import Figures
from sae_sweeps.record.run import Run
from sae_sweeps.system.files import replacing, write_json

SAELENS_VERSION = "6.54.12"
"""what the layout was tested with; SAELens takes a file without a version for an older layout"""


def write_weights(run: Run, sae: Architecture) -> None:
    """All parameters and buffers in unscaled units, from which it can be measured anew."""
    _write_tensors(run.files.weights, sae.state_dict())


def write_saelens(run: Run, sae: Architecture, target: TargetModel, metrics: Figures) -> bool:
    """The folder `sae/` as SAELens reads it; False where SAELens has no such inference rule."""
    weights = sae.saelens()
    if weights is None:
        return False
    cfg: dict[str, Any] = {
        "architecture": weights.architecture,
        "d_in": sae.W_dec.shape[1],
        "d_sae": sae.W_dec.shape[0],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    cfg |= weights.cfg
    cfg["metadata"] = {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": None,
        "model_class_name": "HookedTransformer",
        "hook_head_index": None,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": {},
        "exclude_special_tokens": False,
        "training_architecture": run.label,
        "l0": metrics["l0"],
        **target.description,
        "sae_sweeps": {"run": run.name, "config": run.config.tree, "metrics": metrics},
    }
    _write_tensors(run.files.sae / "sae_weights.safetensors", weights.tensors)
    write_json(run.files.sae / "cfg.json", cfg)
    return True


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(kept, temporary)
