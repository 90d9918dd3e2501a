"""Gathers the packages that a GPU machine lacks, into tests/gpu/wheels, for tests/gpu/run.

Wheels of Python alone, so that they serve any version of it. Two folders, since the peers need
another TransformerLens than we do. What is not among them the machine is to have: torch with CUDA,
numpy, scipy, transformers, safetensors, huggingface-hub, accelerate, jaxtyping, einops, filelock,
matplotlib, pandas, rich, tqdm.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.engine_environments import PEERS as PEERS_THEMSELVES
from tests.support.places import ROOT

from .checkout import checkout

WHEELS = Path(__file__).parent / "wheels"
PACKED = "packed.json"
"""Says what lies there, and of which commit it was gathered."""
MOST_BYTES = 60 * 10**6
PYTHON = "3.12"
"""The machine's; wheels for it alone would not serve CI."""
OURS = (
    *("hydra-core", "omegaconf", "antlr4-python3-runtime", "annotated-types"),
    *("transformer-lens", "beartype", "fancy-einsum", "typeguard", "transformers-stream-generator"),
)
"""What we need and the machine lacks, in the versions of constraints.txt."""
BESIDE_PEERS = (
    *("transformer-lens==3.9.0", "simple-parsing==0.1.9", "docstring-parser==0.18.0"),
    *("better-abc==0.0.3", "natsort==8.4.0", "schedulefree==1.4.1"),
)
"""What the peers need more than we do."""
AS_SOURCE = ("antlr4-python3-runtime", "transformers-stream-generator")
"""Of which there are no wheels: they are built here."""


class Unpacked(Exception):
    """Says in one line what could not be gathered, and why."""


def ours() -> list[str]:
    """What we need, with versions."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    known = {line.partition("==")[0].lower(): line for line in lines if "==" in line}
    return [known[name] for name in OURS]


def peers() -> list[str]:
    """The peers and what they need, with versions."""
    return [*map("==".join, PEERS_THEMSELVES.values()), *BESIDE_PEERS]


def gather(folder: Path, wanted: Sequence[str]) -> None:
    """Download or build these packages' wheels."""
    built = [word for word in wanted if word.startswith(AS_SOURCE)]
    ready = [word for word in wanted if word not in built]
    pure = ["--only-binary=:all:", f"--python-version={PYTHON}", "--platform=any"]
    _pip("download", folder, [*pure, *ready])
    if built:
        _pip("wheel", folder, built)
    foreign = [path.name for path in folder.iterdir() if not path.name.endswith("none-any.whl")]
    if foreign:
        raise Unpacked(f"{', '.join(foreign)}: not of Python alone.")


def _pip(verb: str, folder: Path, words: Sequence[str]) -> None:
    where = f"--{'dest' if verb == 'download' else 'wheel-dir'}={folder}"
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", where, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unpacked(f"pip {verb}: {errors[-1] if errors else done.returncode}")


def pack(folder: Path) -> int:
    """Gather all, in place of what is there; how many bytes they are.

    Raises:
        Unpacked: something is not to be had, or all is too much; what was there still is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheels") as home:
        new = Path(home)
        for name, wanted in (("ours", ours()), ("peers", peers())):
            (new / name).mkdir()
            gather(new / name, wanted)
        size = sum(path.stat().st_size for path in new.rglob("*.whl"))
        if size > MOST_BYTES:
            raise Unpacked(f"{size:,} bytes, and {MOST_BYTES:,} are allowed.")
        told = {"wheels": sorted(p.name for p in new.rglob("*.whl")), **checkout()}
        (new / PACKED).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(new, folder)
    return size


def main() -> None:
    """`pack [--into FOLDER]`"""
    parser = argparse.ArgumentParser(prog="tests/gpu/pack", description=__doc__)
    parser.add_argument("--into", type=Path, default=WHEELS, metavar="FOLDER")
    folder = parser.parse_args().into
    try:
        size = pack(folder)
    except Unpacked as error:
        sys.exit(f"tests/gpu/pack: {error}")
    sys.stdout.write(f"{folder}: {size / 1e6:.1f} MB; carry it with the repository.\n")


if __name__ == "__main__":
    main()
