"""The peers' own trainers for `quality`, in an environment with them: quality_peers.py CASE ANSWER.

Nothing of ours is imported. A peer is as its defaults have it, but for learning rate, batch,
latents, dial (k, target L0 or the penalty's weight), seed and lengths: those given in steps or
tokens for long runs are shares of this one, `SHARES`, where the peer's own recipe uses them.
sparsify's two rows are its default (Signum without a schedule, no auxiliary loss) and Adam with
the auxiliary loss of the TopK paper.

Inputs are centred and scaled to the mean square norm that a peer's recipes have: `d_in` for SAELens
(`expected_average_only_in`) and sparsify, 1 for dictionary_learning (`normalize_activations`).
FVU does not depend on that.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_peers import Lookup, Numbers, without_nnsight
from engine_worker import repeated
from quality_measure import exported, measured
from torch import Tensor

SHARES = {
    "warmup": 0.05,  # of the learning rate, where a peer has one by default
    "sparsity_warmup": 0.1,  # of a penalty's weight
    "decay": 0.2,  # of the learning rate, at the end
    "dead": 0.1,  # without firing, until a latent counts as dead
    "threshold_start": 0.1,  # until dictionary_learning averages its threshold for inference
    "threshold": 0.02,  # that such thresholds average over
}
Found = tuple[str, dict[str, Tensor], float]
"""the rule of inference, its weights, CPU seconds of training"""


class Data:
    """A set as a peer is given it."""

    def __init__(self, case: dict[str, Any], norm: float) -> None:
        """Read, centre and scale; `norm` is the mean square norm wanted."""
        acts = np.load(case["train"])
        mean = acts.mean(0, dtype=np.float64).astype(np.float32)
        acts -= mean
        scale = (norm / np.square(acts, dtype=np.float32).sum(1).mean(dtype=np.float64)) ** 0.5
        acts *= np.float32(scale)
        self.acts = torch.from_numpy(acts)
        self.held_out = torch.from_numpy((np.load(case["held_out"]) - mean) * np.float32(scale))
        self.batch, self.steps = case["batch"], len(acts) // case["batch"]

    def batches(self) -> Iterator[Tensor]:
        """Batches in the file's order, over and over."""
        return repeated(self.acts, self.batch)

    def share(self, name: str) -> int:
        """A share of the run in steps."""
        return max(1, round(SHARES[name] * self.steps))


def timed(train: Callable[[], Any]) -> float:
    """CPU seconds of a training."""
    began = time.process_time()
    train()
    return time.process_time() - began


def saelens(case: dict[str, Any], data: Data) -> Found:
    """`SAETrainer.fit`: no warm-up of the learning rate by default."""
    import sae_lens  # pyright: ignore[reportMissingImports]
    from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import (  # pyright: ignore[reportMissingImports]
        SAETrainer,
    )

    dial, warmup, rate = case["dial"], data.share("sparsity_warmup"), 1 / data.share("threshold")
    name, given = {
        "token": ("TopK", {"k": int(dial)}),
        "mutual": ("BatchTopK", {"k": dial, "topk_threshold_lr": rate}),
        "relu": ("Standard", {"l1_coefficient": dial, "l1_warm_up_steps": warmup}),
        "gated": ("Gated", {"l1_coefficient": dial, "l1_warm_up_steps": warmup}),
        "jumprelu": ("JumpReLU", {"l0_coefficient": dial, "l0_warm_up_steps": warmup}),
    }[case["method"]]
    torch.manual_seed(case["seed"])
    config: Any = getattr(sae_lens, f"{name}TrainingSAEConfig")
    kind: Any = getattr(sae_lens, f"{name}TrainingSAE")
    sae = kind(config(d_in=case["d_in"], d_sae=case["d_sae"], device="cpu", **given))
    trainer: Any = SAETrainer(
        SAETrainerConfig(
            total_training_samples=data.steps * data.batch,
            train_batch_size_samples=data.batch,
            lr=case["lr"],
            lr_end=case["lr"],
            lr_decay_steps=data.share("decay"),
            dead_feature_window=data.share("dead"),
        ),
        sae,
        data.batches(),
    )
    spent = timed(trainer.fit)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return *exported(Path(folder)), spent


def dictionary_learning(case: dict[str, Any], data: Data) -> Found:
    """`trainSAE`."""
    without_nnsight()
    from dictionary_learning import dictionary  # pyright: ignore
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, standard, top_k  # pyright: ignore
    from dictionary_learning.training import trainSAE  # pyright: ignore

    dial = case["dial"]
    penalised = {"l1_penalty": dial, "sparsity_warmup_steps": data.share("sparsity_warmup")}
    thresholds = {
        "k": int(dial),
        "threshold_start_step": data.share("threshold_start"),
        "threshold_beta": 1 - 1 / data.share("threshold"),
    }
    jump = {"target_l0": dial, "sparsity_warmup_steps": data.share("sparsity_warmup")}
    april = {"dict_class": dictionary.AutoEncoderNew}
    kind, read, given = {
        "token": (top_k.TopKTrainer, of_topk, thresholds),
        "mutual": (batch_top_k.BatchTopKTrainer, of_batch_topk, thresholds),
        "relu": (standard.StandardTrainer, of_standard, penalised),
        "relu_april": (standard.StandardTrainerAprilUpdate, of_april, penalised | april),
        "gated": (gdm.GatedSAETrainer, of_gated, penalised),
        "jumprelu": (jumprelu.JumpReluTrainer, of_jumprelu, jump),
    }[case["method"] + ("_april" if case["contender"].endswith("april") else "")]
    made: list[Any] = []

    def trainer(**options: Any) -> Any:
        made.append(kind(**options))
        # Ten million tokens in the trainers, which none has an option for.
        made[0].dead_feature_threshold = data.share("dead") * data.batch
        return made[0]

    lengths = {
        "steps": data.steps,
        "warmup_steps": data.share("warmup"),
        "decay_start": data.steps - data.share("decay"),
    }
    places = {"layer": 0, "lm_name": "none", "seed": case["seed"], "device": "cpu"}
    sizes = {"activation_dim": case["d_in"], "dict_size": case["d_sae"], "lr": case["lr"]}
    torch.manual_seed(case["seed"])  # one of the trainers does not
    wanted = {"trainer": trainer, **lengths, **places, **sizes, **given}
    batches = data.batches()
    spent = timed(partial(trainSAE, batches, [wanted], steps=data.steps, device="cpu"))
    rule, weights = read(made[0].ae)
    return rule, {name: value.detach() for name, value in weights.items()}, spent


Read = tuple[str, dict[str, Tensor]]


def of_topk(ae: Any) -> Read:
    """Without its threshold, an option for inference with fewer latents."""
    return "topk", of_standard(ae, ae.b_dec)[1] | {"k": ae.k}


def of_batch_topk(ae: Any) -> Read:
    """With its threshold."""
    return "jumprelu", of_standard(ae, ae.b_dec)[1] | {"threshold": ae.threshold}


def of_standard(ae: Any, b_dec: Tensor | None = None) -> Read:
    """Whose linear maps are PyTorch's."""
    maps = {"W_enc": ae.encoder.weight.T, "b_enc": ae.encoder.bias, "W_dec": ae.decoder.weight.T}
    return "standard", maps | {"b_dec": ae.bias if b_dec is None else b_dec}


def of_april(ae: Any) -> Read:
    """Which takes no bias off its input."""
    rule, weights = of_standard(ae, ae.decoder.bias)
    return rule, encoding_as_is(weights)


def of_gated(ae: Any) -> Read:
    """Gates and magnitudes."""
    maps = {"W_enc": ae.encoder.weight.T, "W_dec": ae.decoder.weight.T, "b_dec": ae.decoder_bias}
    return "gated", maps | {"b_gate": ae.gate_bias, "b_mag": ae.mag_bias, "r_mag": ae.r_mag}


def of_jumprelu(ae: Any) -> Read:
    """Which takes no bias off its input either."""
    names = "W_enc", "b_enc", "W_dec", "b_dec", "threshold"
    return "jumprelu", encoding_as_is({name: getattr(ae, name) for name in names})


def encoding_as_is(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`b_enc` such that taking `b_dec` off the input first changes nothing."""
    return weights | {"b_enc": weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]}


def sparsify(case: dict[str, Any], data: Data) -> Found:
    """`Trainer.fit`, whose last act is to save what it trained."""
    import sparsify as peer  # pyright: ignore[reportMissingImports]

    adam = {
        "optimizer": "adam",
        "lr_warmup_steps": data.share("warmup"),
        "auxk_alpha": 1 / 32,
        "dead_feature_threshold": data.share("dead") * data.batch,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = peer.TrainConfig(
            peer.SparseCoderConfig(num_latents=case["d_sae"], k=int(case["dial"])),
            batch_size=1,
            lr=case["lr"],
            init_seeds=[case["seed"]],
            hookpoints=["rows"],
            log_to_wandb=False,
            save_every=data.steps + 1,
            save_dir=folder,
            **(adam if case["contender"].endswith("adam") else {}),
        )
        numbers = Numbers(data.batch, len(data.acts), data.steps)
        trainer: Any = peer.Trainer(config, numbers, Lookup(data.acts))
        spent = timed(trainer.fit)
        (saved,) = Path(folder).rglob("sae.safetensors")
        sae = peer.SparseCoder.load_from_disk(saved.parent)
    weights = {"W_enc": sae.encoder.weight.T, "b_enc": sae.encoder.bias}
    weights |= {"W_dec": sae.W_dec, "b_dec": sae.b_dec, "k": torch.tensor(case["dial"])}
    return "topk", {name: value.detach() for name, value in weights.items()}, spent


PEERS: dict[str, tuple[Callable[[dict[str, Any], Data], Found], bool]] = {
    "saelens": (saelens, False),
    "dictionary_learning": (dictionary_learning, True),
    "dictionary_learning_april": (dictionary_learning, True),
    "sparsify": (sparsify, False),
    "sparsify_adam": (sparsify, False),
}
"""by contender: how it trains, and whether its inputs have unit mean square norm"""


def main() -> None:
    """Train, measure, and leave the figures where they are looked for."""
    torch.set_num_threads(1)
    case = json.loads(sys.argv[1])
    train, unit = PEERS[case["contender"]]
    data = Data(case, 1.0 if unit else case["d_in"])
    rule, weights, spent = train(case, data)
    found = measured(rule, weights, data.held_out) | {"cpu_s": spent}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
