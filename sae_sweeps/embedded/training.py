"""Train and evaluate the embedded GPT-2-format model."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from sae_sweeps.embedded import BOS

logger = logging.getLogger(__name__)

VOCAB = 4096
CONTEXT = 128
EVAL_ROWS = 32


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay; every value is the prototype's, none tuned."""

    tokens: int
    seed: int = 0
    batch_rows: int = 32
    lr: float = 3e-3
    warmup_frac: float = 0.05
    final_lr_frac: float = 0.02
    beta_1: float = 0.9
    beta_2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    eval_every_steps: int = 200
    eval_rows: int = 128

    @property
    def steps(self) -> int:
        """Optimiser steps that fit the token budget."""
        return max(1, self.tokens // (self.batch_rows * CONTEXT))

    def lr_at(self, step: int) -> float:
        """Return the learning rate of one step."""
        warmup_steps = max(1, round(self.warmup_frac * self.steps))
        progress = max(0, step - warmup_steps) / max(1, self.steps - warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        decay = self.final_lr_frac + (1 - self.final_lr_frac) * cosine
        return self.lr * min(1.0, (step + 1) / warmup_steps) * decay


class Record(TypedDict):
    """One line of the training history."""

    step: int
    tokens: int
    train_nats: float
    held_out_subset_nats: float
    cpu_seconds: float


def make_rows(ids: Integer[np.ndarray, " tokens"]) -> Int[Tensor, "rows seq"]:
    """Cut a stream into rows of BOS and 127 tokens; an incomplete last row is dropped."""
    width = CONTEXT - 1
    count = len(ids) // width
    body = torch.from_numpy(ids[: count * width].astype(np.int64)).view(count, width)
    return functional.pad(body, (1, 0), value=BOS)


def draw_batches(
    ids: Integer[np.ndarray, " tokens"], recipe: Recipe
) -> Iterator[Int[Tensor, "batch seq"]]:
    """Yield batches without end; each epoch cuts the stream at a new phase, shuffles the rows."""
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        phase = int(torch.randint(CONTEXT - 1, (), generator=generator))
        rows = make_rows(ids[phase:])
        order = torch.randperm(len(rows), generator=generator)
        for chosen in order.split(recipe.batch_rows):
            if len(chosen) == recipe.batch_rows:
                yield rows[chosen]


def build_model(seed: int) -> GPT2LMHeadModel:
    """Return the untrained model: 4 layers of width 128, tied embeddings, no dropout."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=BOS,
    )
    return GPT2LMHeadModel(config)


def next_token_nats(
    model: GPT2LMHeadModel, rows: Int[Tensor, "rows seq"]
) -> Float[Tensor, "rows seq_less_bos"]:
    """Return -log p of every token after the BOS of its row."""
    logits = model(rows, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, rows: Int[Tensor, "rows seq"]) -> float:
    """Return the mean cross-entropy of `rows` in nats per token."""
    model.eval()
    nats = [next_token_nats(model, batch).double().sum() for batch in rows.split(EVAL_ROWS)]
    return float(torch.stack(nats).sum()) / rows[:, 1:].numel()


def build_optimizer(model: GPT2LMHeadModel, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (recipe.beta_1, recipe.beta_2)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)


def train(
    train_ids: Integer[np.ndarray, " tokens"],
    held_out: Int[Tensor, "rows seq"],
    recipe: Recipe,
) -> tuple[GPT2LMHeadModel, list[Record]]:
    """Train a new model; the history watches an evenly spaced subset of the held-out rows."""
    model = build_model(recipe.seed)
    optimizer = build_optimizer(model, recipe)
    count = min(recipe.eval_rows, len(held_out))
    watched = held_out[torch.linspace(0, len(held_out) - 1, count).long()]
    history: list[Record] = []
    start = time.process_time()
    batches = draw_batches(train_ids, recipe)
    for step, rows in zip(range(recipe.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_nats(model, rows).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % recipe.eval_every_steps == 0 or step == recipe.steps - 1:
            record = Record(
                step=step,
                tokens=(step + 1) * recipe.batch_rows * CONTEXT,
                train_nats=round(loss.item(), 4),
                held_out_subset_nats=round(evaluate(model, watched), 4),
                cpu_seconds=round(time.process_time() - start, 1),
            )
            history.append(record)
            logger.info("%s", record)
    return model, history


def load_model(folder: Path) -> GPT2LMHeadModel:
    """Load a saved folder in float32, from disk alone."""
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
