"""What a trained run left, and two of them compared."""

import json

from safetensors.torch import load_file
from torch import Tensor

from sae_sweeps.record.run import Run


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "checkpoint" / "weights.safetensors")


def rows(run: Run) -> list[dict[str, float]]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("perf/")}
        for line in lines
    ]


def assert_equal_runs(one: Run, other: Run) -> None:
    """The same weights bit for bit, the same rows, the same figures."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), name
    assert rows(one) == rows(other)
    results = [json.loads((run.folder / "result.json").read_text()) for run in (one, other)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["batch"] == results[1]["batch"]
