"""The launcher `local`: trains packs in this process, or in several, one per device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sae_sweeps.config.signature import build
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.launcher import PlanLauncher
from sae_sweeps.launching.packs import divided, freeze
from sae_sweeps.launching.summary import left, renew_report, results, tell_end, tell_plan
from sae_sweeps.launching.trying import tried
from sae_sweeps.launching.work import Outcome, Work, work
from sae_sweeps.launching.workers import devices as reachable
from sae_sweeps.launching.workers import free_bytes
from sae_sweeps.launching.writer import Writer
from sae_sweeps.planning.asked import asked
from sae_sweeps.planning.estimate import Estimate
from sae_sweeps.planning.memory import fitting
from sae_sweeps.planning.outlook import Division
from sae_sweeps.record.plan import Plan
from sae_sweeps.record.run import Run
from sae_sweeps.system import interrupt
from sae_sweeps.tracking.interface import Tracking

if TYPE_CHECKING:
    from sae_sweeps.launching.progress import Display


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `hydra/launcher=local`."""

    workers: int | None
    """Processes side by side; None: one per CUDA device, else this process."""
    objective: str | list[str] | None
    """What a sweeper gets of each run: a figure of its result, or a list of them."""
    progress: Literal["auto", "off"]
    """`auto` shows how far the sweep is."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"hydra.launcher.workers is {self.workers}, expected at least 1.")


class Local(PlanLauncher):
    """Trains here and stays until all is done."""

    schema = f"{__name__}.Options"
    given: Options

    def divided(self, plan: Plan) -> Division:
        """As the devices are many, and as their memory is free."""
        streams = [*plan.packs, *plan.remeasured]
        if not streams:
            return Division([], 1)
        devices = self._devices(plan)
        room = free_bytes(devices)
        if room is not None or len(devices) > 1:
            at_most = -(-sum(map(len, streams)) // len(devices))
            streams = divided(streams, at_most, fitting(room))
        return Division(streams, len(devices), room)

    def _devices(self, plan: Plan) -> list[str | None]:
        device, wish = plan.points[0].config.device, asked.get()
        if not (wish and wish.gpu):  # of a GPU that need not be here
            reach_device(device)
        return reachable(device, self.given.workers)

    def estimate(self, plan: Plan) -> Estimate:
        """By a few steps of each kind of run."""
        return tried(plan, self.given.progress, processes=len(self._devices(plan)))

    def carry_out(self, plan: Plan) -> Mapping[str, Outcome]:
        """Train what is not finished, tell what failed, draw the report."""
        division = self.divided(plan)
        streams = division.packs
        writer = Writer(plan, streams, self.node)
        with writer.locked(), interrupt.listening():
            if not streams:
                tell_plan(plan)
            try:
                if len(streams) > 1 and division.at_once > 1:
                    return self._apart(plan, writer, self._devices(plan))
                return self._here(plan, streams, writer)
            except interrupt.Interrupted:
                raise SystemExit(left(plan)) from None

    def _here(self, plan: Plan, packs: list[list[Run]], writer: Writer) -> Mapping[str, Outcome]:
        from sae_sweeps.launching.progress import Messages

        tracking = build(plan.points[0].config.nodes["tracking"])
        outcomes: dict[str, Outcome] = {**plan.finished}
        display = self._display(plan)
        with Messages(display):  # to the end, since a tracker may have trouble with its last rows
            try:
                with display:
                    for pack in packs[:1]:
                        outcomes |= self._first(plan, pack, writer, tracking, display)
                    for pack in packs[1:]:
                        renew_report(plan.folder, tracking)
                        outcomes |= work(pack, tracking, display)
                tell_end(plan, outcomes, tracking)
            except interrupt.Interrupted:
                tracking.close(interrupt.LEAVING_LIMIT_S)
                raise
            tracking.close()
        return outcomes

    def _first(
        self, plan: Plan, pack: list[Run], writer: Writer, tracking: Tracking, display: "Display"
    ) -> dict[str, Outcome]:
        """Do the first pack, which refuses the launch if it cannot be loaded."""
        first = Work(pack, anew=plan.aside)
        first.load_first(display)
        self._begin(plan, writer)
        return first.do(tracking)

    def _apart(
        self, plan: Plan, writer: Writer, devices: list[str | None]
    ) -> Mapping[str, Outcome]:
        from sae_sweeps.launching.workers import work_apart

        self._begin(plan, writer)
        paths = freeze(plan, writer.packs)
        with self._display(plan) as display:
            names = [run.name for pack in [*plan.packs, *plan.remeasured] for run in pack]
            ends = work_apart(plan.folder, paths, names, devices, display)
        lost = {run: ends[p.name] for p in writer.packs if p.name in ends for run in p.runs}
        outcomes = results(plan, lost)
        tell_end(plan, outcomes)
        return outcomes

    def _begin(self, plan: Plan, writer: Writer) -> None:
        """Say what is ahead, now that nothing can refuse it any more."""
        writer.begin()
        tell_plan(plan)

    def _display(self, plan: Plan) -> "Display":
        from sae_sweeps.launching.progress import make

        ahead = [run for pack in plan.packs for run in pack]
        progress = self.given.progress if ahead or plan.remeasured else "off"
        return make(progress, len(ahead), sum(run.config.total_tokens for run in ahead))


def reach_device(name: str) -> None:
    """Refuse a device that this machine does not have."""
    import torch

    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) < torch.cuda.device_count():
        return  # to try would have this process hold a context, half a GB, on a GPU of others
    try:
        torch.empty(1, device=None if name == "auto" else name)
    except Exception as error:  # torch has a type of its own for each kind of device
        why = str(error).splitlines()[0]
        raise ConfigError(f"device is {name!r}, which cannot be had here: {why}") from error
