"""The pack: runs that share a stream, trained from one pass over its activations."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from sae_sweeps import interrupt, options
from sae_sweeps.build import build
from sae_sweeps.interfaces import TargetModel
from sae_sweeps.run import Run
from sae_sweeps.stream.live import Stream
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.training.member import Display, Member


def train_pack(
    runs: list[Run],
    tracking: Tracking,
    display: Display,
    on_ready: Callable[[], None] = lambda: None,
    isolate: bool = False,
) -> list[dict[str, Any] | Exception]:
    """Train `runs`, which share a stream; the content of `result.json`, or the exception, of each.

    `on_ready` is called once everything is built and before anything is written. On a CPU, runs
    train side by side, `threads` cores each; every run's own operations are the same whatever its
    company, so its weights are too. On a signal every run saves a checkpoint. With `isolate`, what
    is wrong with one run is its outcome even if it shows before `on_ready`.

    Raises:
        Interrupted: a signal came, see `interrupt.listening`.
        ConfigError: before `on_ready`, for what only the model or the data could tell.
    """
    config = runs[0].config
    device = pick_device(config["device"])
    torch.set_num_threads(config["threads"])
    display.stage("loading the target model")
    stream = open_stream(config, device)
    built = [_build(index, run, stream, display, isolate) for index, run in enumerate(runs)]
    members = [member for member in built if isinstance(member, Member)]
    on_ready()
    display.started(sum(member.total_tokens for member in members), [run.label for run in runs])
    for index, member in enumerate(built):
        if isinstance(member, Exception):
            display.finished(index, "failed")
    pool_size = workers(device, config["threads"])
    _open_and_train(members, stream, tracking, pool_size)
    outcomes = [member.outcome if isinstance(member, Member) else member for member in built]
    return [outcome for outcome in outcomes if outcome is not None]


def _open_and_train(
    members: list[Member], stream: Stream, tracking: Tracking, pool_size: int
) -> None:
    """Train the members; on a signal they all save, and Interrupted is raised."""
    with interrupt.deferred(), ExitStack() as opened:
        for member in members:
            member.open(tracking)
            if member.outcome is None:
                opened.callback(member.close_files)
        try:
            with ThreadPoolExecutor(pool_size) as pool:
                _train(_unfinished(members), stream, pool)
        except interrupt.Interrupted:
            # The pool is closed, so every member stands between two steps.
            with ThreadPoolExecutor() as pool:
                list(pool.map(Member.leave, _unfinished(members)))
            raise


def _build(
    index: int, run: Run, stream: Stream, display: Display, isolate: bool
) -> Member | Exception:
    try:
        return Member(index, run, stream, display)
    except Exception as error:
        if not isolate:
            raise
        return error


def open_stream(config: dict[str, Any], device: torch.device) -> Stream:
    """The stream that a run's config describes."""
    target: TargetModel = build(config["target_model"], build(config["data"]), device)
    return Stream(target, options.Stream(**config["stream"]))


def _train(members: list[Member], stream: Stream, pool: ThreadPoolExecutor) -> None:
    """Chunk after chunk through all members; the next chunk is computed meanwhile."""
    list(pool.map(Member.finish_if_trained, members))
    active = _unfinished(members)
    if not active:
        return
    # Those that resume further on pass over what they have.
    first = min(member.trainer.tokens for member in active) // stream.chunk_tokens
    upcoming = pool.submit(stream.chunk, first)
    for index in count(first):
        try:
            chunk = upcoming.result()
            upcoming = _ahead(active, stream, pool, index + 1) or upcoming
        except Exception as error:
            for member in active:
                member.fail(error)
            return
        start = index * stream.chunk_tokens
        list(pool.map(partial(Member.advance, chunk=chunk, start=start), active))
        active = _unfinished(active)
        if not active:
            upcoming.cancel()
            return


def _unfinished(members: list[Member]) -> list[Member]:
    return [member for member in members if member.outcome is None]


def _ahead(
    active: list[Member], stream: Stream, pool: ThreadPoolExecutor, index: int
) -> Future[Tensor] | None:
    """Begin with chunk `index`, if anyone will need it, else with what evaluation needs."""
    if any(index * stream.chunk_tokens < member.total_tokens for member in active):
        return pool.submit(stream.chunk, index)
    if stream.target.has_loss:
        # Before the members ask for it, all at once.
        for tokens in {member.evaluation.ce_tokens for member in active} - {0}:
            stream.reference_ce(tokens)
    return None


def pick_device(name: str) -> torch.device:
    """`auto` is an accelerator where there is one."""
    if name != "auto":
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def workers(device: torch.device, threads: int) -> int:
    """Runs that train at the same time: as the cores allow, one on an accelerator."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Not every cluster ties a job to the cores that it was given.
    given = int(os.environ.get("SLURM_CPUS_PER_TASK", cores or 1))
    return max(1, min(cores or 1, given) // threads)
