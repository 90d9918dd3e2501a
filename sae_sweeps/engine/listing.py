"""Up to what share of pairs activations are listed; without torch, since plans ask, too."""

MAX_LISTED = 1 / 8
"""Share of all pairs up to which listing them pays on a CPU; measured at d_in 128 to 768."""
LISTED_FROM = 12288
"""Latents from which listing pays on an accelerator; an estimate, not measured."""


def max_listed(engine: str, device: str, d_sae: int) -> float:
    """Share of token-latent pairs up to which products are made pair by pair, by type of device."""
    if engine != "auto":
        return 1.0 if engine == "sparse" else 0.0
    return MAX_LISTED if device == "cpu" or d_sae >= LISTED_FROM else 0.0
