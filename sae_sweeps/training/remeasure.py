"""Measures finished runs anew from their saved weights: other evaluation options, other metrics."""

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

from sae_sweeps.config import options
from sae_sweeps.interfaces import Architecture, Measurement
from sae_sweeps.record.run import Run
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.stream.live import Stream
from sae_sweeps.system.files import write_json
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.training import results
from sae_sweeps.training.evaluation import as_result, evaluate
from sae_sweeps.training.listener import Listener
from sae_sweeps.training.measurement import new_measurement, with_figures
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.pack import open_harvest, pick_device, workers


def remeasure_pack(
    runs: list[Run],
    tracking: Tracking,
    display: Listener,
    on_ready: Callable[[], None] = lambda: None,
) -> list[dict[str, Any] | Exception]:
    """Measure `runs`, which share a pass; the new content of `result.json`, or the exception.

    Nothing is trained. A run that cannot be measured keeps the result it has.
    """
    config = runs[0].config
    display.stage("measuring finished runs anew")
    torch.set_num_threads(config["threads"])
    device = pick_device(config["device"])
    harvest = open_harvest(runs, device, workers(device, config["threads"]))
    measurement = new_measurement(config["measure"])
    on_ready()
    return [_remeasured(run, harvest, measurement, tracking) for run in runs]


def _remeasured(
    run: Run, harvest: Harvest, measurement: Measurement, tracking: Tracking
) -> dict[str, Any] | Exception:
    try:
        stream = harvest.stream(run.config)
        given = options.EvaluationOptions(**run.config["evaluation"])
        sae = load_sae(run, stream)
        figures = as_result(evaluate(sae, stream, given), given, stream.target.has_loss)
        stream.unscale(sae)
        figures = with_figures(figures, measurement, sae, stream, given)
        old = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
        result = old | figures | {"config": run.config | {"measure_anew": False}}
        results.write_saelens(run, sae, stream.target, figures)
        write_json(run.folder / "result.json", result)
        tracking.open(run).finish(result, failed=False)
        return result
    except Exception as error:
        return error


def load_sae(run: Run, stream: Stream) -> Architecture:
    """A finished run's SAE, for the scaled activations of its stream."""
    sae = new_sae(run.config, stream.target.d_in, stream.target.device)
    sae.load_state_dict(load_file(run.folder / "checkpoint" / "weights.safetensors"))
    sae.to(stream.target.device)
    stream.rescale(sae)
    return sae
