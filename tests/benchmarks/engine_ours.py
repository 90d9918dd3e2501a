"""Our training loop, and a dense reference: python -m tests.benchmarks.engine_ours NAME CASE."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.tracking.off import Off
from sae_sweeps.tracking.wandb.tracker import Wandb
from tests.benchmarks.engine_worker import Gate, repeated, saved
from tests.support.small import Quiet, small_run, train, train_pack

LOG_EVERY = 6553
"""Tokens between two rows of `metrics.jsonl`, as of a run of default length: every 3.2 steps."""
GROUPS = "architecture", "allocator", "aux_loss"
METHODS = {
    "token": ("method=topk",),
    "mutual": ("method=mutual_choice",),
    "feature": ("method=feature_choice", "allocator=feature_choice_scratch"),
    "gated": ("method=gated",),
    "jumprelu": ("method=jumprelu",),
    "relu": ("method=relu",),
}


TINY = "method=topk", "d_sae=64", "k=1", "training.tokens=4096"


class Waiting(Quiet):
    """A display whose runs wait at the gate after each step."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def advance(self, run: int, tokens: int) -> None:
        self.gate.step()


def words(case: dict[str, Any]) -> list[str]:
    """A case in the command line's words, but for its method and k."""
    chunk = case["batch"] * case["chunk_batches"]
    return [
        *target(case),
        *(f"d_sae={case['d_sae']}", f"optimizer.lr={case['lr']}", "schedule.warmup_tokens=0"),
        *("schedule.decay_tokens=0", f"training.log_every_tokens={LOG_EVERY}"),
        *("training.tokens=16384000", f"stream.batch_tokens={case['batch']}", "stream.repeat=true"),
        *(f"stream.chunk_tokens={chunk}", "stream.calibration_tokens=2048"),
        *("evaluation.tokens=2048", "evaluation.ce_tokens=0", "checkpoint_minutes=1000"),
        f"engine={case.get('engine', 'auto')}",
    ]


def target(case: dict[str, Any]) -> list[str]:
    """Where a case's activations come from: a file, or a model's forward pass."""
    if not case["forward"]:
        return ["target_model=activations", f"target_model.path={case['data']}"]
    return [
        *("target_model=transformer_lens", f"target_model.model={case['model']}"),
        f"target_model.hook=blocks.{case['layers'] - 1}.hook_resid_post",
        *(f"target_model.dtype={case['dtype']}", "data=embedded", "data.context_tokens=128"),
        f"target_model.rows_per_forward={case['batch'] // 128}",
    ]


def runs_of(case: dict[str, Any], home: Path) -> list[Run]:
    """The runs of a case: methods times values of k."""
    runs = [
        small_run(home / "runs", *words(case), *METHODS[method], "aux_loss=none", f"k={k}")
        for method in case.get("methods") or [case["method"]]
        for k in case.get("ks") or [case["k"]]
    ]
    return [
        replace(run, choices={name: run.choices[name] for name in GROUPS}) for run in runs
    ]  # as a launch records them


def tracking_of(case: dict[str, Any], home: Path) -> Tracking:
    """W&B offline, all of whose files are in a folder that will be removed."""
    if case["tracking"] == "off":
        return Off()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DIR"):
        os.environ[name] = str(home)
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    return Wandb(project="benchmark", entity=None, mode="offline", tags=[])


def ours(case: dict[str, Any], gate: Gate) -> None:
    """A pack as it is trained, but for one worker thread, whatever the cores."""
    home = Path(case["home"])
    runs, tracking = runs_of(case, home), tracking_of(case, home)
    with patch("sae_sweeps.training.pack.workers", return_value=1):
        if not case["forward"]:
            train(small_run(home, *words(case), *TINY))  # loads what it needs
        gate.ready()
        outcomes = train_pack(runs, Waiting(gate), tracking)
    raise RuntimeError(f"training ended: {outcomes}")


def kept(acts: Tensor, method: str, k: int) -> Tensor:
    """`acts`, zero but where the method keeps them."""
    if method == "token":
        best = acts.topk(k, dim=1, sorted=False)
        return torch.zeros_like(acts).scatter(1, best.indices, best.values)
    if method == "mutual":
        best = acts.flatten().topk(k * len(acts), sorted=False)
        zeros = torch.zeros_like(acts).flatten()
        return zeros.scatter(0, best.indices, best.values).view_as(acts)
    return acts


def dense(case: dict[str, Any], gate: Gate) -> None:
    """The reference, on saved activations."""
    batches = repeated(saved(case), case["batch"])
    gate.ready()
    for _ in reference(case, gate.batches(batches), torch.zeros(case["d_in"])):
        pass


def reference(case: dict[str, Any], batches: Iterator[Tensor], mean: Tensor) -> Iterator[Tensor]:
    """All matrices as such, autograd, Adam as PyTorch has it by default; each step's error.

    `mean` [d_in] is where the decoder's bias starts.
    """
    draw = torch.Generator().manual_seed(0)
    W_dec = nn.Parameter(torch.randn(case["d_sae"], case["d_in"], generator=draw))
    W_dec.data /= W_dec.data.norm(dim=1, keepdim=True)
    W_enc = nn.Parameter(W_dec.data.T.clone())
    b_enc, b_dec = nn.Parameter(torch.zeros(case["d_sae"])), nn.Parameter(mean)
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=case["lr"])
    for x in batches:
        acts = kept(((x - b_dec) @ W_enc + b_enc).relu(), case["method"], case["k"])
        loss = error = (acts @ W_dec + b_dec - x).pow(2).sum() / len(x)
        if case["method"] == "relu":
            loss = loss + acts.sum() / len(x)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        yield error.detach()


CONTENDERS = {"ours": ours, "dense": dense}


def main() -> None:
    """Train for as long as somebody asks for steps."""
    gate = Gate()
    name, case = sys.argv[1:]
    CONTENDERS[name](json.loads(case), gate)


if __name__ == "__main__":
    main()
