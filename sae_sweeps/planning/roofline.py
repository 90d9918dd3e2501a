"""How long a GPU would take, by its rates: no torch, no device. An estimate, no measurement.

Each part of a step takes as long as its products or its bytes do; `tests/gpu` counts both for
every method on fake tensors, and holds this against it.
"""

from sae_sweeps.config.options import RunConfig
from sae_sweeps.planning import costs
from sae_sweeps.planning.gpus import Gpu

OF_WEIGHTS = 62
"""Bytes a parameter of encoder and decoder: Adam 32, the rest gradients, norms and rounding."""
OF_PAIRS = 4
"""Times that the rows of all listed pairs are read."""
GATHERED = 0.7
"""Speed of rows read here and there, of that of memory read in order."""
OF_MODELS = 0.57
"""Speed of a language model's products, of that of the large ones of an SAE."""
HOST_S = 0.8e-3
"""A step's hundred operators, queued one after the other by the host."""


START_S = 15.0
"""What a process imports, a node's disks being cold."""
LOADED = 1e9
"""Bytes a second of weights on their way from a disk."""


def start_s(weight_bytes: int) -> float:
    """Seconds until a process has imported and loaded what it needs (estimated)."""
    return START_S + weight_bytes / LOADED


def step_s(config: RunConfig, d_in: int, gpu: Gpu) -> float:
    """Seconds of a training step."""
    cost = costs.of_step(config, "cuda")
    batch, parameters = config.stream.batch_tokens, 2 * d_in * config.d_sae
    exact = config.training.precision == "float32"
    rate = gpu.exact_products if exact else gpu.products
    moved = OF_WEIGHTS * parameters + cost.passes * 4 * batch * config.d_sae
    if cost.listed:
        pairs = batch * config.nodes["allocator"]["k"]
        moved += OF_PAIRS * pairs * 4 * d_in / GATHERED
    return max(HOST_S, cost.products * batch * parameters / rate + moved / gpu.streamed)


def pass_s(parameters: int, dtype: str, gpu: Gpu) -> float:
    """Seconds of a token's pass through so many parameters of a model."""
    rate = gpu.exact_products if dtype == "float32" else gpu.products
    return 2 * parameters / (OF_MODELS * rate)


def evaluation_s(config: RunConfig, d_in: int, gpu: Gpu) -> float:
    """Seconds of a finished run's figures, the target model's passes aside: all in float32.

    Two rules of inference, each with the encoder's product and, in the worst case, the decoder's;
    one of them is in the model for the cross-entropy.
    """
    products = 4 * 2 * d_in * config.d_sae / gpu.exact_products
    matrices = 10 * 4 * config.d_sae / gpu.streamed
    tokens = config.evaluation.tokens + config.evaluation.ce_tokens / 2
    return tokens * (products + matrices)
