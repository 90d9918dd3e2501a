"""The pack: runs that share a pass over a target model, whose hooks may differ."""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count

import torch

from sae_sweeps.config.history import outdated
from sae_sweeps.engine import gemm
from sae_sweeps.engine.device import looks_whole, settle
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Measurement
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.stream.ahead import Ahead, Coming
from sae_sweeps.stream.harvest import Chunks, Harvest
from sae_sweeps.stream.live import Stream
from sae_sweeps.system import interrupt
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.training.listener import Listener
from sae_sweeps.training.measurement import new_measurement
from sae_sweeps.training.member import Member
from sae_sweeps.training.remeasure import remeasured

logger = logging.getLogger(__name__)

Outcome = Result | Exception
"""What became of a run: its result, or why there is none."""
Begin = Callable[[int, list[Stream]], Chunks | Coming]
"""Starts to read a chunk of some streams."""


def load(train: Sequence[Run], measure: Sequence[Run], display: Listener) -> "Pack":
    """Load what runs share, and build those to train; nothing is written before `Pack.train`.

    Args:
        train: runs to train, or to go on with.
        measure: finished runs to measure anew from their weights.

    Raises:
        ConfigError: what only the model or the data could tell, of all of them.
    """
    display.stage("loading the target model")
    config = [*train, *measure][0].config
    settle(config.deterministic)
    device = pick_device(config.device)
    if device.type == "cuda" and config.training.precision == "float32":
        logger.warning("training.precision=float32: products take 15 times as long as in bfloat16")
    torch.set_num_threads(config.threads)
    gemm.keep_memory()
    at_once = workers(device, config.threads)
    measurement = new_measurement(config.nodes["measure"])
    with ThreadPoolExecutor(at_once) as pool:
        harvest = Harvest([run.config for run in (*train, *measure)], device, pool)
    for hint in harvest.hints():
        logger.warning("%s", hint)
    members = [_built(index, run, harvest, measurement, display) for index, run in enumerate(train)]
    return Pack(list(train), members, list(measure), harvest, measurement, at_once, display)


def _built(
    index: int, run: Run, harvest: Harvest, measurement: Measurement, display: Listener
) -> Member | Exception:
    try:
        if text := outdated(run.config.tree):
            raise ConfigError(f"{text}: {run.name} cannot go on; repeat its command to train anew.")
        return Member(index, run, harvest.stream(run.config), measurement, display)
    except Exception as error:
        return error


class Pack:
    """Runs that are loaded, to be trained or measured."""

    def __init__(
        self,
        runs: list[Run],
        built: list[Member | Exception],
        finished: list[Run],
        harvest: Harvest,
        measurement: Measurement,
        at_once: int,
        display: Listener,
    ) -> None:
        self.runs, self.built, self.finished = runs, built, finished
        self.harvest, self.measurement = harvest, measurement
        self.at_once, self.display = at_once, display

    @property
    def faults(self) -> list[Exception]:
        """What is wrong with runs that cannot be trained; the others can."""
        return [fault for fault in self.built if isinstance(fault, Exception)]

    def train(self, tracking: Tracking) -> list[Outcome]:
        """Train the runs; the outcome of each, in order.

        On a CPU, they train side by side, `threads` cores each; every run's own operations are the
        same whatever its company, so its weights are too. On a signal every run saves a checkpoint.

        Raises:
            Interrupted: a signal came, see `interrupt.listening`.
        """
        members = [member for member in self.built if isinstance(member, Member)]
        total = sum(member.total_tokens for member in members)
        self.display.started(total, [run.title for run in self.runs])
        for index, member in enumerate(self.built):
            if isinstance(member, Exception):
                self.display.finished(index, "failed")
        _open_and_train(members, self.harvest, tracking, self.at_once)
        outcomes = [m.outcome if isinstance(m, Member) else m for m in self.built]
        return [outcome for outcome in outcomes if outcome is not None]

    def measure(self, tracking: Tracking) -> list[Outcome]:
        """Measure the finished runs anew; what fails keeps the result that it has."""
        self.display.stage("measuring finished runs anew")
        return [remeasured(run, self.harvest, self.measurement, tracking) for run in self.finished]


def _open_and_train(
    members: list[Member], harvest: Harvest, tracking: Tracking, at_once: int
) -> None:
    """Train the members; on a signal they all save, and Interrupted is raised."""
    with interrupt.deferred(), ExitStack() as opened:
        for member in members:
            member.open(tracking)
            if member.outcome is None:
                opened.callback(member.close_files)
        try:
            with ThreadPoolExecutor(at_once) as pool, _reader(harvest, pool) as begin:
                _train(_unfinished(members), begin, pool)
        except interrupt.Interrupted:
            # The pool is closed, so every member stands between two steps.
            with ThreadPoolExecutor() as pool:
                list(pool.map(Member.leave, _unfinished(members)))
            raise


@contextmanager
def _reader(harvest: Harvest, pool: ThreadPoolExecutor) -> Generator[Begin]:
    """What reads chunks: on a CPU the members' own threads, elsewhere one beside them."""
    if looks_whole(harvest.device):
        with Ahead(harvest, harvest.device) as ahead:
            yield ahead.begin
    else:
        yield partial(harvest.begin, pool=pool)


def _train(members: list[Member], begin: Begin, pool: ThreadPoolExecutor) -> None:
    """Chunk after chunk through all members; one chunk ahead is computed meanwhile."""
    list(pool.map(Member.finish_if_trained, members))
    active = _unfinished(members)
    if not active:
        return
    # Those that resume further on pass over what they have.
    first = min(member.trainer.tokens for member in active) // active[0].stream.chunk_tokens
    upcoming = begin(first, _streams(active, first))
    for index in count(first):
        training = _advance(active, upcoming, pool)
        # Behind the members in the pool's queue, so that no worker is idle before all is done.
        upcoming = _ahead(active, begin, index + 1) or upcoming
        for future in training:
            future.result()
        active = _unfinished(active)
        if not active:
            upcoming.cancel()
            return


def _advance(
    active: list[Member], chunks: Chunks | Coming, pool: ThreadPoolExecutor
) -> list[Future[None]]:
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


def _ahead(active: list[Member], begin: Begin, index: int) -> Chunks | Coming | None:
    """Begin with chunk `index`, if anyone will need it, else with what evaluation needs."""
    active = _unfinished(active)
    streams = _streams(active, index)
    if streams:
        return begin(index, streams)
    predicting = [member for member in active if member.stream.target.has_loss]
    wanted = {(m.stream, m.run.config.evaluation.ce_tokens) for m in predicting}
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
