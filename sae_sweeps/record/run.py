"""What one run of a sweep is; no torch."""

from dataclasses import dataclass
from pathlib import Path

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.config.options import RunConfig
from sae_sweeps.record.folder import RunFolder


@dataclass(frozen=True)
class Run:
    """One SAE to train with one resolved config."""

    name: str
    """`<slug>-<hash8>`: the folder's name and the basis of the tracker's id."""
    sweep: str
    """The sweep's name, which is also the tracker's group."""
    folder: Path
    """`outputs/<sweep>/runs/<name>`, absolute."""
    config: RunConfig
    choices: dict[str, str]
    """The option file chosen per group: `{"architecture": "relu", ...}`."""
    overrides: list[str]
    """What the user's command changed, in Hydra's grammar."""

    @property
    def files(self) -> RunFolder:
        """What lies in the folder."""
        return RunFolder(self.folder)

    @property
    def title(self) -> str:
        """What tells it from the other runs of a pack, for people."""
        return title(self.label, self.config)

    @property
    def label(self) -> str:
        """The method in tables and plots, from the option files that are really in force."""
        return label(self.choices)


def label(choices: dict[str, str]) -> str:
    """Name a method by its groups: `relu`, `token_choice + aux_k`, `gated × mutual_choice`."""
    architecture, allocator = choices["architecture"], choices["allocator"]
    if allocator == "none":
        name = architecture
    elif architecture == "relu":
        name = allocator
    else:
        name = f"{architecture} × {allocator}"
    labelled = [group for group in GROUPS if group.labelled]
    extras = [choices.get(g.name, g.usual) for g in labelled]
    unusual = [extra for extra, g in zip(extras, labelled, strict=True) if extra != g.usual]
    return " + ".join([name, *map(str, unusual)])


def title(label: str, config: RunConfig) -> str:
    """Tell a run from others of its pack: `gated, k 16, seed 0`."""
    return f"{label}, k {config.k:g}, seed {config.seed}"
