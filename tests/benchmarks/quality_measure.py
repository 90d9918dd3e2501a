"""The one ruler of `quality`: an SAE's L0, FVU and dead latents, without a batch.

Needs PyTorch and safetensors and nothing of ours or of a peer's: weights come in SAELens' layout
for inference, whoever trained them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

BLOCK = 2048
"""Tokens measured at a time."""
Weights = Mapping[str, Tensor]


def standard(w: Weights, x: Tensor) -> Tensor:
    """Activations of a ReLU SAE."""
    return (x @ w["W_enc"] + w["b_enc"]).relu()


def topk(w: Weights, x: Tensor) -> Tensor:
    """The `k` largest of each token, where positive."""
    pre_acts = x @ w["W_enc"] + w["b_enc"]
    best = pre_acts.topk(int(w["k"]), dim=1, sorted=False)
    return torch.zeros_like(pre_acts).scatter(1, best.indices, best.values.relu())


def jumprelu(w: Weights, x: Tensor) -> Tensor:
    """Positive ones above their latent's threshold."""
    pre_acts = x @ w["W_enc"] + w["b_enc"]
    return pre_acts.relu() * (pre_acts > w["threshold"])


def gated(w: Weights, x: Tensor) -> Tensor:
    """Magnitudes where the gate is open."""
    shared = x @ w["W_enc"]
    magnitude = (shared * w["r_mag"].exp() + w["b_mag"]).relu()
    return magnitude * (shared + w["b_gate"] > 0)


RULES: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    rule.__name__: rule for rule in (standard, topk, jumprelu, gated)
}


def exported(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The rule and weights of an SAE that SAELens saved for inference, or we for SAELens."""
    cfg = json.loads((folder / "cfg.json").read_text())
    weights = load_file(folder / "sae_weights.safetensors")
    return cfg["architecture"], weights | {"k": torch.tensor(cfg.get("k", 0))}


@torch.no_grad()
def measured(rule: str, w: Weights, x: Tensor) -> dict[str, float]:
    """Figures on tokens `x` [tokens, d_in], in the weights' own scale.

    `b_dec` is taken off the input of every rule. `l0`: mean of positive activations a token;
    `fvu`: sum |x - recon|^2 / sum |x - mean|^2; `dead_frac`: latents positive on no token.
    """
    mean = x.double().mean(0)
    error, spread, active = 0.0, 0.0, 0
    fired = torch.zeros(len(w["W_dec"]), dtype=torch.bool)
    for part in x.split(BLOCK):
        acts = RULES[rule](w, part - w["b_dec"])
        recon = acts @ w["W_dec"] + w["b_dec"]
        error += (part - recon).double().pow(2).sum().item()
        spread += (part.double() - mean).pow(2).sum().item()
        active += int((acts > 0).sum())
        fired |= (acts > 0).any(0)
    dead = (~fired).double().mean().item()
    return {"l0": active / len(x), "fvu": error / spread, "dead_frac": dead}
