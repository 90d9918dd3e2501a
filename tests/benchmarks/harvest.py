"""What a harvest costs: beside the bare model, of several layers, and within a sweep.

python -m tests.benchmarks.harvest

GPT-2 small's dimensions, random weights, one thread, CPU seconds; ratios within interleaved rounds.
Kept under results/.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from sae_sweeps.config.signature import build
from sae_sweeps.embedded import MODEL
from sae_sweeps.interfaces import Split
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.target_model.loading import Loader
from sae_sweeps.target_model.transformer_lens import TransformerLens
from tests.support.small import small_run, train

RESULTS = Path(__file__).parent / "results"
LAYER = 6
ROUNDS = 7
TOKENS_PER_PASS = 2048
HOOKS = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYER)]
SWEEP = (
    *("d_sae=6144", "stream.batch_tokens=2048", "stream.chunk_tokens=8192"),
    *("stream.calibration_tokens=2048", "training.tokens=32768", "evaluation.tokens=2048"),
)
TWELVE = [
    (method, k) for method in ("topk", "mutual_choice", "feature_choice") for k in (8, 16, 32, 64)
]


def saved_model(home: Path, config: GPT2Config | None = None) -> Path:
    """A folder with a GPT-2, of the small one's dimensions, and a tokenizer whose ids it knows."""
    torch.manual_seed(0)
    GPT2LMHeadModel(config or GPT2Config()).save_pretrained(home / "gpt2")
    for path in MODEL.glob("tokenizer*"):
        shutil.copy(path, home / "gpt2")
    return home / "gpt2"


def words(folder: Path, context: int, dtype: str, hook: str = HOOKS[-1]) -> list[str]:
    """The target model in the command line's words."""
    return [
        *("target_model=transformer_lens", f"target_model.model={folder}"),
        *(f"target_model.hook={hook}", f"target_model.dtype={dtype}"),
        *(f"target_model.rows_per_forward={TOKENS_PER_PASS // context}",),
        *("data=embedded", f"data.context_tokens={context}"),
    ]


def opened(home: Path, given: list[str]) -> TransformerLens:
    """The target model that words describe."""
    config = small_run(home, *given).config
    device = torch.device("cpu")
    target: TransformerLens = build(
        config.nodes["target_model"], build(config.nodes["data"]), device
    )
    return target


def compared(home: Path, folder: Path, context: int, dtype: str) -> dict[str, float]:
    """Tokens per CPU second of the bare truncated model, and what ways of harvesting cost of it."""
    target = opened(home, words(folder, context, dtype))
    for hook in HOOKS:
        assert target.beside(hook) is not None
    rows = torch.arange(TOKENS_PER_PASS // context)
    tokens = target.tokens["train"][rows]
    kind = getattr(torch, dtype)
    bare = GPT2Model(GPT2Config(n_layer=LAYER)).to(kind).eval().requires_grad_(False)
    loader = Loader(str(folder), None, torch.device("cpu"), kind)
    bridge = loader._bridged(False)  # pyright: ignore[reportPrivateUsage]
    bridge.attach(HOOKS[-1])

    @torch.inference_mode()
    def truncated() -> Tensor:
        return bare(tokens, use_cache=False).last_hidden_state

    ways: dict[str, Callable[[], object]] = {
        "bare": truncated,
        "one_hook": lambda: target.activations("train", rows),
        "six_hooks": lambda: target.activations_at(HOOKS, "train", rows),
        "bridge": lambda: bridge.activations(tokens, HOOKS[-1:]),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:  # the first round warms up
                spent[name].append(time.process_time() - began)
    return {"tokens_per_cpu_s": TOKENS_PER_PASS / median(spent["bare"])} | {
        f"bare_over_{name}": median(
            b / own for b, own in zip(spent["bare"], spent[name], strict=True)
        )
        for name in ways
        if name != "bare"
    }


def layers(home: Path, folder: Path, dtype: str) -> dict[str, float]:
    """CPU seconds of a chunk for the runs of one hook and of six, shuffled and scaled."""
    spent: dict[str, list[float]] = {"one": [], "six": []}
    with ThreadPoolExecutor(1) as pool:
        harvests: dict[str, Harvest] = {}
        for name, hooks in (("one", HOOKS[-1:]), ("six", HOOKS)):
            configs = [
                small_run(home, *words(folder, 128, dtype, hook), *SWEEP).config for hook in hooks
            ]
            harvests[name] = Harvest(configs, torch.device("cpu"), pool)
            streams = [harvests[name].stream(config) for config in configs]
            for index in range(4):
                began = time.process_time()
                chunks = harvests[name].begin(index, streams, pool)
                chunks.wait()
                for stream in streams:
                    chunks.take(stream)
                spent[name].append(time.process_time() - began)
    one, six = (median(seconds) for seconds in spent.values())
    return {"one_cpu_s": one, "six_cpu_s": six, "six_over_one": six / one}


def share_of_a_sweep(home: Path, folder: Path, dtype: str) -> dict[str, float]:
    """CPU seconds of 12 runs from one pass, and of the pass alone."""
    spent: list[float] = []
    activations = TransformerLens.activations

    def timed(target: TransformerLens, split: Split, rows: Tensor) -> Tensor:
        began = time.thread_time()
        try:
            return activations(target, split, rows)
        finally:
            spent.append(time.thread_time() - began)

    base = [*words(folder, 128, dtype), *SWEEP, "evaluation.ce_tokens=0"]
    runs = [small_run(home, *base, f"method={method}", f"k={k}") for method, k in TWELVE]
    began = time.process_time()
    with patch.object(TransformerLens, "activations", timed):
        assert not any(isinstance(result, Exception) for result in train(*runs))
    seconds = time.process_time() - began
    return {"cpu_s": seconds, "harvest_cpu_s": sum(spent), "share": sum(spent) / seconds}


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "# What a harvest costs",
        "",
        "`python -m tests.benchmarks.harvest`: GPT-2 small's dimensions, random weights, a thread",
        f"({torch.cpu.get_capabilities().get('cpu_name', 'CPU')}), medians of {ROUNDS} interleaved",
        f"rounds. Ratios are speeds relative to Hugging Face's model cut off after layer {LAYER}:",
        "1 is as fast. Six hooks: the residual stream after each of those layers.",
        "",
        "| context | dtype | bare: tokens per CPU s | one hook | six hooks | through the bridge |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["compared"]:
        ratios = (row[f"bare_over_{name}"] for name in ("one_hook", "six_hooks", "bridge"))
        cells = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(
            f"| {row['context']} | {row['dtype']} | {row['tokens_per_cpu_s']:,.0f} | {cells} |"
        )
    lines += [
        "",
        "A sweep of 12 runs (three allocators, four `k`, 6,144 latents, 32,768 tokens):",
        "",
    ]
    lines += ["| dtype | CPU seconds | of them harvest | share |", "|---|---|---|---|"]
    for row in found["sweep"]:
        lines.append(
            f"| {row['dtype']} | {row['cpu_s']:.0f} | {row['harvest_cpu_s']:.0f} | "
            f"{row['share']:.1%} |"
        )
    lines += ["", "A chunk of 8,192 tokens of 128 for the streams of one layer and of six:", ""]
    lines += ["| dtype | one: CPU seconds | six | ratio |", "|---|---|---|---|"]
    for row in found["layers"]:
        lines.append(
            f"| {row['dtype']} | {row['one_cpu_s']:.2f} | {row['six_cpu_s']:.2f} | "
            f"{row['six_over_one']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and keep the figures."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"compared": [], "layers": [], "sweep": []}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        folder = saved_model(home)
        for context in (128, 1024):
            for dtype in ("float32", "bfloat16"):
                row = {"context": context, "dtype": dtype}
                found["compared"].append(row | compared(home, folder, context, dtype))
        for dtype in ("float32", "bfloat16"):
            found["layers"].append({"dtype": dtype} | layers(home, folder, dtype))
        for dtype in ("float32", "bfloat16"):
            found["sweep"].append({"dtype": dtype} | share_of_a_sweep(home, folder, dtype))
    (RESULTS / "harvest.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "harvest.md").write_text(table(found))


if __name__ == "__main__":
    main()
