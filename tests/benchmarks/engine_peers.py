"""The peers' own training loops, each in an environment with the peer: engine_peers.py NAME CASE.

Nothing of ours is imported here. Every loop runs unchanged; it is fed with batches that wait for
the benchmark. Learning rate, batch, latents and k are ours, all else is as the peer has it.
"""

import importlib
import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from engine_worker import Gate, repeated, saved
from torch import Tensor, nn

STEPS = 100_000
"""More than are ever asked for."""
CONTEXT = 128
VOCABULARY = 50257


def source(case: dict[str, Any]) -> Iterator[Tensor]:
    """Batches: saved ones, or from TransformerLens' forward pass, as SAELens makes them."""
    if not case["forward"]:
        return repeated(saved(case), case["batch"])
    return _forward(case)


def _forward(case: dict[str, Any]) -> Iterator[Tensor]:
    lens: Any = importlib.import_module("transformer_lens")  # not the version that we have
    layers = case["layers"]
    config = lens.HookedTransformerConfig(
        n_layers=layers,
        d_model=768,
        n_ctx=1024,
        d_head=64,
        n_heads=12,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        dtype=getattr(torch, case["dtype"]),
        device="cpu",
        seed=0,
    )
    model = lens.HookedTransformer(config)
    hook = f"blocks.{layers - 1}.hook_resid_post"
    draw = torch.Generator().manual_seed(0)
    shape = (case["batch"] // CONTEXT, CONTEXT)
    while True:
        tokens = torch.randint(VOCABULARY, shape, generator=draw)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                tokens, names_filter=[hook], stop_at_layer=layers, prepend_bos=False
            )
        yield cache[hook].flatten(0, 1).float()


def saelens(case: dict[str, Any], gate: Gate) -> None:
    """`SAETrainer.fit`."""
    import sae_lens  # pyright: ignore[reportMissingImports]
    from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import (  # pyright: ignore[reportMissingImports]
        SAETrainer,
    )

    names = {"token": "TopKTrainingSAE", "mutual": "BatchTopKTrainingSAE"}
    kind: Any = getattr(sae_lens, names[case["method"]])
    config: Any = getattr(sae_lens, f"{names[case['method']]}Config")
    batches = source(case)
    gate.ready()
    torch.manual_seed(0)
    sae = kind(config(k=case["k"], d_in=case["d_in"], d_sae=case["d_sae"], device="cpu"))
    batch = case["batch"]
    trainer: Any = SAETrainer(
        SAETrainerConfig(
            total_training_samples=STEPS * batch,
            train_batch_size_samples=batch,
            lr=case["lr"],
            lr_end=case["lr"],
        ),
        sae,
        gate.batches(batches),
    )
    trainer.fit()


def without_nnsight() -> None:
    """Leave out what dictionary_learning imports to read models."""
    stub = types.ModuleType("nnsight")
    stub.LanguageModel = object  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["nnsight"] = stub


def dictionary_learning(case: dict[str, Any], gate: Gate) -> None:
    """`trainSAE`."""
    without_nnsight()
    from dictionary_learning.trainers import batch_top_k, top_k  # pyright: ignore
    from dictionary_learning.training import trainSAE  # pyright: ignore

    trainers: Any = {"token": top_k.TopKTrainer, "mutual": batch_top_k.BatchTopKTrainer}
    batches = source(case)
    gate.ready()
    given: dict[str, Any] = {
        "trainer": trainers[case["method"]],
        "steps": STEPS,
        "activation_dim": case["d_in"],
        "dict_size": case["d_sae"],
        "k": case["k"],
        "lr": case["lr"],
        "layer": 0,
        "lm_name": "none",
        "seed": 0,
        "device": "cpu",
    }
    trainSAE(gate.batches(batches), [given], steps=STEPS, device="cpu")


class Lookup(nn.Module):
    """A model for sparsify, whose token ids are the numbers of saved activations."""

    device = torch.device("cpu")
    dummy_inputs: dict[str, Tensor] = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}  # noqa: RUF012

    def __init__(self, acts: Tensor) -> None:
        super().__init__()
        self.rows = nn.Embedding.from_pretrained(acts)

    @property
    def base_model(self) -> nn.Module:
        """What hooks are looked for in."""
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """The activations of those numbers."""
        return self.rows(input_ids)


class Numbers(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A batch's token ids per item."""

    def __init__(self, batch: int, tokens: int, steps: int) -> None:
        self.batch, self.tokens, self.steps = batch, tokens, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = index * self.batch
        return {"input_ids": torch.arange(first, first + self.batch) % self.tokens}


class Waiting(Numbers):
    """Items that wait at the gate."""

    def __init__(self, case: dict[str, Any], tokens: int, gate: Gate) -> None:
        super().__init__(case["batch"], tokens, STEPS)
        self.gate = gate

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.gate.step()
        return super().__getitem__(index)


def sparsify(case: dict[str, Any], gate: Gate) -> None:
    """`Trainer.fit` with Adam."""
    import sparsify as peer  # pyright: ignore[reportMissingImports]

    acts = saved(case)
    gate.ready()
    sae = peer.SparseCoderConfig(num_latents=case["d_sae"], k=case["k"])
    config = peer.TrainConfig(
        sae,
        batch_size=1,
        optimizer="adam",
        lr=case["lr"],
        lr_warmup_steps=0,
        hookpoints=["rows"],
        log_to_wandb=False,
        save_every=STEPS,
    )
    trainer: Any = peer.Trainer(config, Waiting(case, len(acts), gate), Lookup(acts))
    trainer.fit()


PEERS = {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


def main() -> None:
    """Train for as long as somebody asks for steps."""
    gate = Gate()
    name, case = sys.argv[1:]
    PEERS[name](json.loads(case), gate)


if __name__ == "__main__":
    main()
