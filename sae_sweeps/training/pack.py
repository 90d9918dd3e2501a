"""The pack: runs trained from one pass over a target model, whose hooks may differ."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any

import torch

from sae_sweeps.config.history import outdated
from sae_sweeps.engine import gemm
from sae_sweeps.errors import ConfigError
from sae_sweeps.record.run import Run
from sae_sweeps.stream.harvest import Chunks, Harvest
from sae_sweeps.stream.live import Stream
from sae_sweeps.system import interrupt
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.training.listener import Listener
from sae_sweeps.training.member import Member


def train_pack(
    runs: list[Run],
    tracking: Tracking,
    display: Listener,
    on_ready: Callable[[], None] = lambda: None,
    isolate: bool = False,
) -> list[dict[str, Any] | Exception]:
    """Train `runs`, which share a pass; the content of `result.json`, or the exception, of each.

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
    gemm.keep_memory()
    display.stage("loading the target model")
    pool_size = workers(device, config["threads"])
    harvest = open_harvest(runs, device, pool_size)
    built = [_build(index, run, harvest, display, isolate) for index, run in enumerate(runs)]
    members = [member for member in built if isinstance(member, Member)]
    on_ready()
    display.started(sum(member.total_tokens for member in members), [run.label for run in runs])
    for index, member in enumerate(built):
        if isinstance(member, Exception):
            display.finished(index, "failed")
    _open_and_train(members, harvest, tracking, pool_size)
    outcomes = [member.outcome if isinstance(member, Member) else member for member in built]
    return [outcome for outcome in outcomes if outcome is not None]


def _open_and_train(
    members: list[Member], harvest: Harvest, tracking: Tracking, pool_size: int
) -> None:
    """Train the members; on a signal they all save, and Interrupted is raised."""
    with interrupt.deferred(), ExitStack() as opened:
        for member in members:
            member.open(tracking)
            if member.outcome is None:
                opened.callback(member.close_files)
        try:
            with ThreadPoolExecutor(pool_size) as pool:
                _train(_unfinished(members), harvest, pool)
        except interrupt.Interrupted:
            # The pool is closed, so every member stands between two steps.
            with ThreadPoolExecutor() as pool:
                list(pool.map(Member.leave, _unfinished(members)))
            raise


def _build(
    index: int, run: Run, harvest: Harvest, display: Listener, isolate: bool
) -> Member | Exception:
    try:
        if text := outdated(run.config):
            raise ConfigError(f"{text}: {run.name} cannot go on; repeat its command to train anew.")
        return Member(index, run, harvest.stream(run.config), display)
    except Exception as error:
        if not isolate:
            raise
        return error


def open_harvest(runs: list[Run], device: torch.device, pool_size: int) -> Harvest:
    """The streams of runs that share a pass."""
    with ThreadPoolExecutor(pool_size) as pool:
        return Harvest([run.config for run in runs], device, pool)


def _train(members: list[Member], harvest: Harvest, pool: ThreadPoolExecutor) -> None:
    """Chunk after chunk through all members; one chunk ahead is computed meanwhile."""
    list(pool.map(Member.finish_if_trained, members))
    active = _unfinished(members)
    if not active:
        return
    # Those that resume further on pass over what they have.
    first = min(member.trainer.tokens for member in active) // active[0].stream.chunk_tokens
    upcoming = harvest.begin(first, _streams(active, first), pool)
    for index in count(first):
        training = _advance(active, upcoming, pool)
        # Behind the members in the pool's queue, so that no worker is idle before all is done.
        upcoming = _ahead(active, harvest, pool, index + 1) or upcoming
        for future in training:
            future.result()
        active = _unfinished(active)
        if not active:
            upcoming.cancel()
            return


def _advance(active: list[Member], chunks: Chunks, pool: ThreadPoolExecutor) -> list[Future[None]]:
    """Set members to train on their streams' chunks, as soon as these are there."""
    try:
        chunks.wait()
    except Exception as error:
        for member in active:
            member.fail(error)
        return []
    training: list[Future[None]] = []
    for stream in _streams(active, chunks.index):
        own = [member for member in active if member.stream is stream]
        try:
            chunk = chunks.take(stream)
        except Exception as error:
            for member in own:
                member.fail(error)
        else:
            start = chunks.index * stream.chunk_tokens
            training += [pool.submit(member.advance, chunk, start) for member in own]
    return training


def _unfinished(members: list[Member]) -> list[Member]:
    return [member for member in members if member.outcome is None]


def _streams(active: list[Member], index: int) -> list[Stream]:
    """The streams whose chunk `index` someone needs, in the order of their members."""
    needy = [m for m in active if index * m.stream.chunk_tokens < m.total_tokens]
    return list(dict.fromkeys(member.stream for member in needy))


def _ahead(
    active: list[Member], harvest: Harvest, pool: ThreadPoolExecutor, index: int
) -> Chunks | None:
    """Begin with chunk `index`, if anyone will need it, else with what evaluation needs."""
    active = _unfinished(active)
    streams = _streams(active, index)
    if streams:
        return harvest.begin(index, streams, pool)
    wanted = {(m.stream, m.evaluation.ce_tokens) for m in active if m.stream.target.has_loss}
    for stream, tokens in wanted:
        # Before the members ask for it, all at once; what it raises is told to those who do.
        with suppress(Exception):
            if tokens:
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
