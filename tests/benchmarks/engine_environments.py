"""An environment with the peers of the engine benchmark, made where there is none."""

import json
import os
import subprocess
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS = {
    "saelens": ("sae-lens", "6.54.12"),
    "dictionary_learning": ("dictionary-learning", "0.1.0"),
    "sparsify": ("eai-sparsify", "1.3.3"),
}
WITHOUT_DEPENDENCIES = ("dictionary_learning",)
"""Needs an old nnsight only to read models; what else it needs the others bring."""
TOLD = ("torch", "transformer-lens", "transformers", "numpy")
VERSIONS = """
import importlib.metadata as metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def default_folder() -> Path:
    """Where environments are kept that nobody gave a place."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sae_sweeps" / "benchmarks"


def made(folder: Path) -> tuple[Path, str | None]:
    """The interpreter of an environment with PyTorch and the peers, and what went wrong."""
    home = folder / f"peers-{'-'.join(version for _, version in PEERS.values())}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python, None
    venv.create(home, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for names, options in (
        ([name for name in PEERS if name not in WITHOUT_DEPENDENCIES], [TORCH]),
        (WITHOUT_DEPENDENCIES, ["--no-deps"]),
    ):
        wanted = ["==".join(PEERS[name]) for name in names]
        done = subprocess.run([*pip, *options, *wanted], capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            # No more of it: where it looked is nobody's business.
            return python, "pip could not install it" if errors else f"pip: {done.returncode}"
    (home / "complete").touch()
    return python, None


def versions(python: Path) -> dict[str, str]:
    """Versions of the peers, and of what they compute with, that an interpreter has."""
    names = [package for package, _ in PEERS.values()]
    command = [str(python), "-c", VERSIONS, *names, *TOLD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
