"""The figures of the engine benchmark for people."""

from typing import Any

from tests.benchmarks.engine_tables import grid, verdict
from tests.benchmarks.engine_training_report import bitwise, quality, reach

HEAD = """# How fast the engine is

`python -m tests.benchmarks.engine`. One thread, CPU seconds (`time.process_time`); ratios
are medians over interleaved rounds of what two contenders cost in the same round. Every contender
is a process; each peer runs its own training loop on the same activations (made: sparse sums of
2,000 directions with Zipf frequencies, noise of rank 64, a mean), with its own defaults but for
Adam, learning rate 3e-4, 2,048 tokens a batch and `k`.

Ours is `train_pack` as a launch runs it: gradient clip, counters, a row of metrics every 6,553
tokens (every 3.2 steps, as a run of default length), mirrored to W&B offline. Peers log nothing.
Auxiliary losses: ours off, sparsify's off as by default; SAELens and dictionary_learning have
theirs on as by default, but so early no latent counts as dead, so that they compute none. The dense
reference is a loop of ten lines with PyTorch's default Adam.

{machine}
Peers' versions: {peers}.
"""
FORWARDS = {
    "the forward pass that the 12 share, float32": "12 runs, float32 forward",
    "the forward pass that the 12 share, bfloat16": "12 runs, bfloat16 forward",
}
"""Rows that are told though not measured: a contender's cost less that on saved activations."""
WITHOUT_FORWARD = "12 runs, saved activations"
CLOCKS = "cpu_ms", "wall_ms"
LABELS = {"ours": "**ours**", "dense": "dense reference"}


def table(found: dict[str, Any]) -> str:
    """All parts that there are."""
    parts = [
        (name, part(found[name]))
        for name, part in (
            ("steps", _steps),
            ("sweep", _sweep),
            ("memory", _memory),
            ("breakdown", _breakdown),
            ("overhead", _overhead),
            ("ops", _ops),
            ("quality", quality),
            ("reach", reach),
            ("bitwise", bitwise),
        )
        if name in found
    ]
    lines = [HEAD.format(peers=_peers(found["peers"]), machine=_machine(found["machine"]))]
    for name, text in parts:
        measured = found["measured"][name]
        load = f"{measured['load_before']:.1f} to {measured['load_after']:.1f}"
        rounds = f"{measured['rounds']} rounds, " if name in ("steps", "sweep") else ""
        lines += [*text, "", f"({rounds}load average {load})", ""]
    return "\n".join(lines)


def _peers(peers: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in peers["versions"].items())
    return versions + (f" ({peers['trouble']})" if peers["trouble"] else "")


def _machine(machine: dict[str, Any]) -> str:
    libraries = "; ".join(line.split(" for ")[0].split(" (")[0] for line in machine["libraries"])
    return (
        f"{machine['cpu']}, {machine['cores']} shared cores, {machine['instructions']}, "
        f"OMP_WAIT_POLICY={machine['wait_policy']}, PyTorch {machine['torch']} ({libraries}); "
        f"ours multiplies with {machine['gemm']}."
    )


def _steps(rows: list[dict[str, Any]]) -> list[str]:
    cells: list[list[str]] = []
    for row in rows:
        name: str = row["name"]
        first = [row["method"], f"{row['d_sae']:,}", LABELS.get(name, name)]
        if "missing" in row:
            cells.append([*first, "", "", "", "", f"missing: {row['missing']}"])
            continue
        ratio = row["over_ours"]
        cells.append(
            [
                *first,
                f"{row['cpu_ms']:,.1f}",
                f"{row['wall_ms']:,.1f}",
                f"{row['tokens_per_cpu_s']:,.0f}",
                f"{ratio:.2f}" if ratio else "",
                verdict(ratio, row["wanted"], at_least=True) if ratio else "",
            ]
        )
    return [
        "## One step: `d_in` 384, 2,048 tokens, `k` 32",
        "",
        *grid(
            ["method", "d_sae", "", "CPU ms", "wall ms", "tokens/CPU s", "× ours", "wanted"], cells
        ),
        "",
        "relu and gated are at their first steps, where about half of all latents are active and",
        "every product is a dense one; jumprelu's thresholds let few pass from the start.",
    ]


def _forwards(costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_name = {cost["name"]: cost for cost in costs}
    without = by_name.get(WITHOUT_FORWARD)
    return [
        {"name": label} | {clock: by_name[name][clock] - without[clock] for clock in CLOCKS}
        for label, name in FORWARDS.items()
        if without and name in by_name
    ]


def _sweep(found: dict[str, Any]) -> list[str]:
    costs = [
        [cost["name"], f"{cost['cpu_ms']:,.0f}", f"{cost['wall_ms']:,.0f}"]
        for cost in [*found["costs"], *_forwards(found["costs"])]
    ]
    ratios = [
        [
            *(row["one"], row["other"], f"{row['ratio']:.2f}"),
            verdict(row["ratio"], row["wanted"], at_least=False),
        ]
        for row in found["ratios"]
    ]
    return [
        "## A sweep of 12 runs beside one run of a peer's",
        "",
        "Token, mutual and feature choice, `k` 8, 16, 32 and 64; `d_in` 768, 6,144 latents; layer",
        "6 of a model with GPT-2 small's dimensions and random weights, contexts of 128. SAELens'",
        "forward pass is TransformerLens' in float32 up to that layer; its run has `k` 32. The",
        "forward pass that the 12 share is the difference of their rows with it and without.",
        "",
        *grid(["per 2,048 tokens", "CPU ms", "wall ms"], costs),
        "",
        *grid(["", "relative to", "ratio", "wanted"], ratios),
        *(f"\nMissing: {name} ({why})" for name, why in found["missing"].items()),
    ]


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    ours = {row["method"]: row.get("peak_mb") for row in rows if row["name"] == "ours"}
    cells: list[list[str]] = []
    for row in rows:
        name: str = row["name"]
        first = [row["method"], LABELS.get(name, name)]
        own = ours[row["method"]]
        if "missing" in row or own is None:
            cells.append([*first, "", "", f"missing: {row.get('missing', 'ours')}"])
            continue
        share = own / row["peak_mb"]
        wanted = 0.6 if name == "dictionary_learning" else None
        goal = verdict(share, wanted, at_least=False)
        cells.append([*first, f"{row['peak_mb']:,.0f}", f"{share:.2f}", goal])
    return [
        "## Memory: `d_in` 384, 12,288 latents, 2,048 tokens, first three steps",
        "",
        "Peak above what the process had before it built its SAE, activations of the peers loaded",
        "by then; parameters, gradients and Adam's moments are 144 MB of it. Without W&B.",
        "",
        *grid(["method", "", "peak MB", "ours / it", "wanted"], cells),
    ]


def _breakdown(found: dict[str, dict[str, float]]) -> list[str]:
    kinds = list(dict.fromkeys(kind for parts in found.values() for kind in parts))
    kinds.remove("the product alone")
    cells: list[list[str]] = []
    for method, parts in found.items():
        total = sum(parts.get(kind, 0.0) for kind in kinds)
        shares = [f"{parts.get(k, 0):.1f} ({parts.get(k, 0) / total:.0%})" for k in kinds]
        floor = parts["the product alone"]
        cells.append([method, f"{total:.1f}", *shares, f"{floor:.1f} ({floor / total:.0%})"])
    return [
        "## What a step is made of: `d_in` 384, 12,288 latents, CPU ms",
        "",
        "The floor is the encoder's product alone, measured in the same rounds. The engine's",
        "prototype with MKL's product: it 69 %, selection 15 %, sparse products 8 %, Adam 1.4 %.",
        "Harvest, the model's forward pass, is told with the sweep, and logging with what is not",
        "mathematics.",
        "",
        *grid(["method", "step", *kinds, "floor"], cells),
    ]


def _overhead(found: dict[str, dict[str, float]]) -> list[str]:
    cells: list[list[str]] = []
    for method, row in found.items():
        share = row["beside_mathematics"] + row["checkpoint_share"]
        cells.append(
            [
                *(method, f"{row['mathematics_ms']:.1f}", f"{row['beside_mathematics']:.1%}"),
                *(f"{row['checkpoint_cpu_s']:.2f}", f"{row['checkpoint_share']:.2%}"),
                verdict(100 * share, 5, at_least=False) + " (%)",
            ]
        )
    return [
        "## What is not mathematics",
        "",
        "CPU of `Member.advance` (counters, metrics, W&B offline) over that of forward, backward,",
        "clip and Adam on the same batches; a checkpoint, written every five minutes.",
        "",
        *grid(
            ["method", "mathematics ms", "beside it", "checkpoint CPU s", "share", "wanted"], cells
        ),
    ]


def _ops(found: dict[str, dict[str, Any]]) -> list[str]:
    cells = [
        [
            *(method, str(row["ops"])),
            ", ".join(f"{n} {name}" for name, n in row["synchronisations"].items()) or "none",
        ]
        for method, row in found.items()
    ]
    return [
        "## Operators of a step without metrics",
        "",
        "Dispatched operators on a CPU, and among them those whose kind makes an accelerator wait;",
        "ranking by groups and looking for ties, which most of them are for, is done on CPUs only.",
        "",
        *grid(["method", "operators", "synchronising"], cells),
    ]
