"""A plan's runs divided into packs, and packs frozen in files for the processes that take them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sae_sweeps.config.history import upgrade
from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.stored import checked_again
from sae_sweeps.errors import ConfigError
from sae_sweeps.record import manifest
from sae_sweeps.record.folder import PACK_VERSION, PackFiles
from sae_sweeps.record.identity import stream_identity
from sae_sweeps.record.plan import Plan
from sae_sweeps.record.run import Run
from sae_sweeps.system import files


def divided(
    passes: Sequence[list[Run]],
    at_most: int,
    fits: Callable[[Sequence[Run]], bool] = lambda _: True,
) -> list[list[Run]]:
    """Divide the runs of each pass over a target model into packs.

    As few as there can be of at most so many runs each, which fit into a device's memory; a run
    that does not even fit alone has a pack for itself.
    """
    packs: list[list[Run]] = []
    for runs in passes:
        streams = list(dict.fromkeys(stream_identity(run.config) for run in runs))
        for count in range(-(-len(runs) // at_most), len(runs) + 1):
            parts = _near(runs, streams, count) if streams[1:] else _even(runs, count, at_most)
            if all(fits(part) for part in parts if len(part) > 1):
                packs += parts
                break
    return packs


def _near(runs: list[Run], streams: list[str], count: int) -> list[list[Run]]:
    """Packs of about as many runs, with few hooks each: a pass goes no deeper than it must."""
    near = sorted(runs, key=lambda run: streams.index(stream_identity(run.config)))
    cuts = [len(near) * i // count for i in range(count + 1)]
    return [near[start:stop] for start, stop in pairwise(cuts)]


def _even(runs: list[Run], count: int, at_most: int) -> list[list[Run]]:
    """Packs that take about as long: the dearest first, each to the one with least to do so far."""
    packs: list[list[Run]] = [[] for _ in range(count)]
    for run in sorted(runs, key=_cost, reverse=True):
        room = [pack for pack in packs if len(pack) < at_most]
        min(room, key=lambda pack: sum(map(_cost, pack))).append(run)
    return packs


def _cost(run: Run) -> int:
    return run.config.d_sae * run.config.training.tokens


# --- A pack in a file ----------------------------------------------------------------------


@dataclass(frozen=True)
class Frozen:
    """All that a process needs to train a pack: no YAML is read again."""

    files: PackFiles
    runs: list[Run]
    git: dict[str, str] | None
    """The code's state when the pack was frozen."""


def freeze(plan: Plan, packs: Sequence[manifest.Pack]) -> list[Path]:
    """Write a `packs/<name>.json` for each pack."""
    runs = {run.name: run for run in plan.runs}
    git = manifest.git_state()
    paths: list[Path] = []
    for pack in packs:
        rows = [_row(runs[name]) for name in pack.runs]
        paths.append(plan.files.pack(pack.name).frozen)
        files.write_json(paths[-1], {"version": PACK_VERSION, "git": git, "runs": rows})
    return paths


def _row(run: Run) -> dict[str, Any]:
    facts = {key: getattr(run, key) for key in ("name", "sweep", "choices", "overrides")}
    return facts | {"config": run.config.tree}


def thaw(path: Path) -> Frozen:
    """Read a pack's file, and build nothing yet.

    Raises:
        ConfigError: for one of another version, and for what a sweep's files may not name.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found.get("version")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, AttributeError):
        raise ConfigError(f"{path} is not a pack's file.") from None
    if version not in (1, 2, PACK_VERSION):
        raise ConfigError(f"{path} has version {version!r}, expected {PACK_VERSION}: launch again.")
    pack = PackFiles(path)
    try:
        runs = [_run(row, pack) for row in found["runs"]]
    except KeyError as error:
        raise ConfigError(f"{path} is not a pack's file: it lacks {error}.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a pack's file: {error}.") from None
    for run in runs:
        checked_again(run.config)
    return Frozen(pack, runs, found.get("git"))


def _run(row: Mapping[str, Any], pack: PackFiles) -> Run:
    config = RunConfig.of(upgrade(row["config"]))
    folder = pack.sweep.run(row["name"]).path
    return Run(row["name"], row["sweep"], folder, config, row["choices"], row["overrides"])
