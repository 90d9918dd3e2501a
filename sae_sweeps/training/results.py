"""What a finished run leaves: weights, the same for SAELens, and `result.json` last."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_sweeps.interfaces import Architecture, TargetModel
from sae_sweeps.record.run import RESULT_VERSION, Run
from sae_sweeps.system.files import replacing, write_json, write_text

SAELENS_VERSION = "6.54.12"
"""what the layout was tested with; SAELens takes a file without a version for an older layout"""


def write_weights(run: Run, sae: Architecture) -> None:
    """All parameters and buffers in unscaled units, as `checkpoint/weights.safetensors`."""
    _write_tensors(run.folder / "checkpoint" / "weights.safetensors", sae.state_dict())


def write_saelens(
    run: Run, sae: Architecture, target: TargetModel, figures: dict[str, Any]
) -> bool:
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
        "l0": figures["metrics"]["l0"],
        **target.description,
        "sae_sweeps": {"run": run.name, "config": run.config, "metrics": figures["metrics"]},
    }
    _write_tensors(run.folder / "sae" / "sae_weights.safetensors", weights.tensors)
    write_json(run.folder / "sae" / "cfg.json", cfg)
    return True


def result(run: Run, figures: dict[str, Any]) -> dict[str, Any]:
    """The content of `result.json`."""
    return {
        "version": RESULT_VERSION,
        "run": run.name,
        "sweep": run.sweep,
        "label": run.label,
        "choices": run.choices,
        "config": run.config,
        "k": run.config["k"],
        "d_sae": run.config["d_sae"],
        "seed": run.config["seed"],
    } | figures


def cut_rows(path: Path, tokens: int) -> None:
    """Leave out the rows of `metrics.jsonl` that came after so many tokens, or that are torn."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if _tokens(line) <= tokens]
    write_text(path, "".join(f"{line}\n" for line in kept))


def _tokens(line: str) -> float:
    """The tokens of a row; infinite for one that a crash tore."""
    try:
        return float(json.loads(line)["tokens"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(kept, temporary)
