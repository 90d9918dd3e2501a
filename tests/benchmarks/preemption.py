"""Disturbs SLURM jobs in every way there is; keeps under results/ what each costs.

python -m tests.benchmarks.preemption               all triggers, on clusters of its own
python -m tests.benchmarks.preemption WORDS ...     those whose name has one of the words

Each trigger meets three sweeps of two runs at the same time, a job and a node each. Rows are
written every batch, so that work which is lost shows to the batch.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.benchmarks.preemption_table import TIMES, Found, keep
from tests.benchmarks.preemption_triggers import TRIGGERS, Trigger, lose_the_nodes, nodes, nothing
from tests.slurm.conftest import Slurm, new_cluster, start, until
from tests.slurm.sweeps import (
    is_over,
    left_behind,
    processes,
    sae_sweeps,
    start_node,
    submit,
    sweep,
    wait_for_end,
)

ONE_NODE_EACH = ("hydra.launcher.memory=3900M",)
USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"


class Watch(Thread):
    """Looks ten times a second how far runs are, since an attempt cuts the rows of the last."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(daemon=True)
        self.folders, self.over = folders, Event()
        self.seen: dict[Path, dict[int, int]] = {}
        """Of each run the tokens that each attempt came to, by its file's inode."""

    def run(self) -> None:
        """Look until told that it is over."""
        while not self.over.wait(0.1):
            for folder in self.folders:
                for path in folder.glob("runs/*/metrics.jsonl"):
                    with path.open("rb") as file:
                        inode, tokens = path.stat().st_ino, last_tokens(file.read())
                    if tokens:
                        self.seen.setdefault(path.parent, {})[inode] = tokens

    def attempts(self, run: Path) -> list[int]:
        """Tokens that the run's attempts came to."""
        return list(self.seen.get(run, {}).values())


def last_tokens(content: bytes) -> int:
    """The tokens of the last whole row."""
    whole = content.rpartition(b"\n")[0].rpartition(b"\n")[2]
    return json.loads(whole)["tokens"] if whole else 0


def meet(slurm: Slurm, trigger: Trigger, home: Path, expected: dict[str, Any]) -> list[Found]:
    """Have three sweeps meet a trigger."""
    words = (*trigger.length, *ONE_NODE_EACH, *trigger.words)
    homes = [home / str(number) for number in range(TIMES)]
    with ThreadPoolExecutor() as pool:
        submitted = [pool.submit(submit, slurm, place, *words) for place in homes]
    folders = [each.result() for each in submitted]
    watch = Watch(folders)
    watch.start()
    for folder in folders:
        trigger.ready(slurm, folder)
    before = [tokens(watch, folder) for folder in folders]
    gone = disturb(slurm, trigger, folders)
    until(lambda: all(is_over(slurm, folder) for folder in folders), trigger.name, 600, 0.5)
    with ThreadPoolExecutor() as pool:
        retrying = [pool.submit(retry, slurm, folder) for folder in folders]
    retried = [each.result() for each in retrying]
    ends = [wait_for_end(slurm, folder, 300) for folder in folders]
    watch.over.set()
    return [
        Found(
            restarts(slurm, folder),
            before[number] if trigger.act is not nothing else ends_of(watch, folder),
            starts_of(folder),
            twice(watch, folder),
            left_after(folder),
            gone[number],
            retried[number],
            ends[number]["counts"]["done"] == 2 and left_behind(folder) == expected,
        )
        for number, folder in enumerate(folders)
    ]


def disturb(slurm: Slurm, trigger: Trigger, folders: Sequence[Path]) -> list[float | None]:
    """Let it happen; seconds until each sweep's process is gone."""
    if trigger.act is nothing:
        return [None] * len(folders)
    lost = nodes(slurm, folders)
    began = time.monotonic()
    trigger.act(slurm, folders)
    gone: dict[Path, float] = {}

    def are_gone() -> bool:
        for folder in folders:
            if folder not in gone and not processes(folder):
                gone[folder] = round(time.monotonic() - began, 2)
        return len(gone) == len(folders)

    until(are_gone, "the processes' end", 120)
    if trigger.act is lose_the_nodes:
        for node in lost:
            state = ("sinfo", "-h", "-n", node, "-o", "%t")
            until(lambda command=state: "down" in slurm.run(*command), "a node's loss", 90)
            start_node(slurm, node)
    return [gone[folder] for folder in folders]


def retry(slurm: Slurm, folder: Path) -> int:
    """Have what is lost trained on, until nothing is; how often that was needed."""
    times = 0
    while wait_for_end(slurm, folder, 300)["counts"]["lost"]:
        done = sae_sweeps(slurm, folder.parent.parent, "retry", str(folder))
        assert done.returncode == 0, done.stderr
        times += 1
    return times


def tokens(watch: Watch, folder: Path) -> list[int]:
    """How far each run is."""
    return [(watch.attempts(run) or [0])[-1] for run in sorted((folder / "runs").iterdir())]


def ends_of(watch: Watch, folder: Path) -> list[int]:
    """Tokens at which attempts were ended, of all runs."""
    runs = sorted((folder / "runs").iterdir())
    return [end for run in runs for end in watch.attempts(run)[:-1]]


def starts_of(folder: Path) -> list[int]:
    """Tokens at which attempts went on, of all runs."""
    return [start for run in sorted((folder / "runs").iterdir()) for start in resumed(run)]


def resumed(run: Path) -> list[int]:
    """Tokens at which attempts at a run went on; its log begins anew without a checkpoint."""
    return list(map(int, re.findall(r" resumed at (\d+) ", (run / "run.log").read_text())))


def twice(watch: Watch, folder: Path) -> int:
    """Tokens that later attempts had to train again."""
    lost = 0
    for run in sorted((folder / "runs").iterdir()):
        ends, starts = watch.attempts(run)[:-1], resumed(run)
        starts = [0] * (len(ends) - len(starts)) + starts
        lost += sum(end - start for end, start in zip(ends, starts, strict=True))
    return lost


def left_after(folder: Path) -> list[float]:
    """Seconds from a signal to the exit, of all attempts that got one."""
    logs = [path.read_text() for path in sorted(folder.glob("packs/*.log"))]
    return [float(found) for log in logs for found in re.findall(r" left ([\d.]+) s after ", log)]


def restarts(slurm: Slurm, folder: Path) -> int:
    """How often SLURM started the sweep's jobs again."""
    manifest = json.loads((folder / "sweep.json").read_text())
    packs = [pack for launch in [*manifest["earlier"], manifest] for pack in launch["packs"]]
    shown = [slurm.run("scontrol", "-o", "show", "job", pack["job"]) for pack in packs]
    return sum(int(count) for text in shown for count in re.findall(r" Restarts=(\d+)", text))


def main(words: Sequence[str]) -> None:
    """Measure the triggers that are asked for."""
    wanted = [each for each in TRIGGERS if not words or any(word in each.name for word in words)]
    for user_signal in (False, True):
        triggers = [each for each in wanted if each.user_signal == user_signal]
        if not triggers:
            continue
        slurm = new_cluster()
        home = Path(tempfile.mkdtemp(prefix="preemption-"))
        expected: dict[tuple[str, ...], dict[str, Any]] = {}
        try:
            start(slurm, *(["--extra", USER_SIGNAL] if user_signal else []))
            for number, trigger in enumerate(triggers):
                if trigger.length not in expected:
                    place = home / f"undisturbed{number}"
                    place.mkdir()
                    done = sae_sweeps(slurm, place, *sweep(*trigger.length))
                    assert done.returncode == 0, done.stderr
                    expected[trigger.length] = left_behind(place / "outputs" / "it")
                began = time.monotonic()
                found = meet(slurm, trigger, home / str(number), expected[trigger.length])
                keep(trigger.name, found)
                took = f"{trigger.name}: {time.monotonic() - began:.0f} s"
                sys.stdout.write("\n".join([took, *map(str, found), ""]))
                sys.stdout.flush()
        finally:
            slurm.script("stop")
            shutil.rmtree(slurm.folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
