"""Directions of one set matched to those of another, each used once; numpy, without torch."""

import numpy as np
from jaxtyping import Float

RECOVERED = 0.9
"""Cosine above which a true feature counts as recovered; our choice."""
BLOCK = 1024
"""Rows whose products are held in both precisions at once."""


def matched_cosines(
    one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " pairs"]:
    """Cosines of the one-to-one assignment of rows whose sum is largest, in the order of `one`.

    min(n, m) of them; of rows that have no partner there is none. Exact: the Hungarian problem,
    for which 8 n m bytes are needed. A row of zeros has cosine 0 with all. So SAEs are compared in
    arXiv 2501.16615.

    Raises:
        ValueError: a number is not finite.
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second to load

    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("directions must be finite")
    cosines = _cosines(one, other)
    np.negative(cosines, out=cosines)  # the solver would copy them in order to maximise
    rows, columns = linear_sum_assignment(cosines)
    return -cosines[rows, columns]


def recovery(
    truth: Float[np.ndarray, "features d"], decoder: Float[np.ndarray, "d_sae d"]
) -> dict[str, float]:
    """How much of a known dictionary an SAE's decoder has found; all latents count, dead ones too.

    `true_matched_cos`: mean over true features of the cosine with the latent assigned to each, 0
    for those that get none because there are fewer latents; `true_recovered_frac`: share for which
    it is above 0.9; `true_max_cos`: mean of the largest cosine with any latent, as in MMCS.
    """
    matched = matched_cosines(truth, decoder)
    return {
        "true_matched_cos": float(matched.sum()) / len(truth),
        "true_max_cos": float(_cosines(truth, decoder).max(1).mean()),
        "true_recovered_frac": float((matched > RECOVERED).sum()) / len(truth),
    }


def _cosines(
    one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """All pairs' cosines, computed in the rows' own precision and held in float64."""
    one, other = _unit(one), _unit(other)
    found = np.empty((len(one), len(other)))
    for start in range(0, len(one), BLOCK):
        found[start : start + BLOCK] = one[start : start + BLOCK] @ other.T
    return found


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)
