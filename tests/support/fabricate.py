"""Sweeps made by hand, in any state that a crash or a cluster may leave them in."""

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from sae_sweeps.config.options import RunConfig
from sae_sweeps.record import manifest
from sae_sweeps.record.manifest import Pack
from sae_sweeps.record.plan import Plan, Point
from sae_sweeps.record.run import Run
from tests.support.small import small_run

CHOICES = {"architecture": "relu", "allocator": "token_choice"}
TOKENS = 1000


@cache
def _config() -> RunConfig:
    words = ("k=8", "stream.batch_tokens=100", f"training.tokens={TOKENS}")
    return small_run(Path(), *words).config


def config(seed: int) -> RunConfig:
    """A small run's."""
    return replace(_config(), seed=seed)


def launch(folder: Path, seeds: list[int], packs: list[Pack]) -> None:
    """Write a launch of the runs `s0`, `s1`, ... into the manifest."""
    points = [Point([f"seed={seed}"], config(seed), CHOICES) for seed in seeds]
    runs = [
        Run(f"s{seed}", folder.name, folder / f"runs/s{seed}", p.config, p.choices, p.overrides)
        for seed, p in zip(seeds, points, strict=True)
    ]
    manifest.write(Plan(folder.name, folder, points, runs, {}, [], []), packs, {"_target_": "x.Y"})


def sweep(folder: Path, jobs: list[str | None]) -> Path:
    """A sweep of one run for each job, `s0`, `s1`, ..., each a pack of its own."""
    packs = [Pack(f"1-{i}", [f"s{i}"], job) for i, job in enumerate(jobs)]
    launch(folder, list(range(len(jobs))), packs)
    return folder


def result(seed: int) -> dict[str, Any]:
    return {
        "version": 1,
        "label": "token_choice",
        "choices": CHOICES,
        "config": config(seed).tree,
        "tokens": TOKENS,
        "metrics": {"l0": 7.5, "fvu": 0.25, "ce_recovered": None},
        "cost": {"tokens_per_s": 50.0},
    }


def write(path: Path, content: object) -> Path:
    """Write JSON, or bytes and text as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def finish(folder: Path, *seeds: int) -> None:
    for seed in seeds:
        write(folder / f"runs/s{seed}/result.json", result(seed))


def rows(*tokens: int) -> str:
    return "".join(
        json.dumps({"tokens": n, "train/l0": n / 10, "train/fvu": 0.5, "perf/tokens_per_s": 25.0})
        + "\n"
        for n in tokens
    )


@contextmanager
def held(path: Path) -> Generator[None]:
    """Hold a lock file, as another process would: locks are those of the open file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Slurm:
    """Commands named like SLURM's, which answer from files and note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("squeue", "sacct", "scancel"):
            script = write(
                folder / name,
                f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n'
                f"cat {folder}/{name}.answer\nexit $(cat {folder}/{name}.code)\n",
            )
            script.chmod(0o755)
            self.answers(name)

    def answers(self, name: str, *lines: str, code: int = 0) -> None:
        write(self.folder / f"{name}.answer", "".join(f"{line}\n" for line in lines))
        write(self.folder / f"{name}.code", str(code))

    def queue(self, *jobs: str, of: Path | None = None) -> None:
        """Answer with `id|state|node|restarts|reason` for each job of a sweep, `a` beside this."""
        sweep = of or self.folder.parent / "a"
        (sweep / "packs").mkdir(parents=True, exist_ok=True)
        fields = [job.rsplit("|", 1) for job in jobs]
        script = f"{sweep.name}|{sweep}/packs/.submission.sh|{sweep}/packs/%A_%a/%A_%a_0_log.out"
        self.answers("squeue", *(f"{first}|{script}|{reason}" for first, reason in fields))

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []
