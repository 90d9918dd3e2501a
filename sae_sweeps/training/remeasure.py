"""Measures finished runs anew from their saved weights: other evaluation options, other metrics."""

from dataclasses import replace

from safetensors.torch import load_file

from sae_sweeps.interfaces import Architecture, Measurement
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.stream.live import Stream
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.training import results
from sae_sweeps.training.evaluation import evaluate
from sae_sweeps.training.measurement import with_figures
from sae_sweeps.training.member import new_sae


def remeasured(
    run: Run, harvest: Harvest, measurement: Measurement, tracking: Tracking
) -> Result | Exception:
    """Renew a finished run's result; where that fails, it keeps the one it has."""
    try:
        stream = harvest.stream(run.config)
        sae = load_sae(run, stream)
        evaluation = evaluate(sae, stream, run.config.evaluation)
        config = replace(run.config, measure_anew=False)
        result = replace(run.files.result(), **vars(evaluation), config=config)
        stream.unscale(sae)
        result = with_figures(result, measurement, sae, stream)
        results.write_saelens(run, sae, stream.target, result.metrics)
        run.files.finish(result)
        tracking.open(run).finish(result)
        return result
    except Exception as error:
        return error


def load_sae(run: Run, stream: Stream) -> Architecture:
    """A finished run's SAE, for the scaled activations of its stream."""
    sae = new_sae(run.config, stream.target.d_in, stream.target.device)
    sae.load_state_dict(load_file(run.files.weights))
    sae.to(stream.target.device)
    stream.rescale(sae)
    return sae
