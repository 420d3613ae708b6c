"""Which tissues the shells of an acquisition can tell apart."""

import numpy as np

from shd_bids.gradients.table import GradientTable
from shd_bids.response.response import Responses
from shd_bids.sphere.harmonics import Y00

MAX_FRACTION_ERROR = 0.25  # of a tissue fraction; see `separable_tissues`
ASSUMED_SNR = 20.0  # of one b=0 volume in white matter


def separable_tissues(responses: Responses, gradients: GradientTable) -> tuple[tuple[str, ...], str]:
    r"""Return which tissues the shells can tell apart, decided from the numbers.

    The mean signals of the tissues, one column each, shells weighted by their volumes, are a small linear model
    :math:`M`. Its solution has the covariance :math:`\sigma^2 (M^T M)^{-1}`. A set of tissues will do when no
    fraction (of the signal at b=0) has a standard error above 0.25 at SNR 20. Tried are WM + GM + CSF, WM + CSF,
    WM + GM, in this order: with one shell CSF explains more than GM, which differs little from WM there.

    Returns
    -------
    tissues : tuple of str
        White matter first.
    reason : str
        One sentence.
    """
    present = [response.tissue for response in responses.tissues]
    weights = np.sqrt([len(shell.indices) for shell in gradients.shells])
    n_shells = len(gradients.shells)
    for tissues in (("wm", "gm", "csf"), ("wm", "csf"), ("wm", "gm")):
        if not set(tissues) <= set(present):
            continue
        columns = np.stack([r.coefficients[:, 0] for r in responses.only(tissues).tissues], axis=1) * Y00
        model = weights[:, None] * columns / np.where(columns[0] > 0, columns[0], 1)  # unit: share of its own b=0
        error = _fraction_error(model, responses)
        if error <= MAX_FRACTION_ERROR:
            names = " + ".join(tissue.upper() for tissue in tissues)
            why = f"standard error of a fraction {error:.2f} at SNR {ASSUMED_SNR:.0f}"
            left_out = [t.upper() for t in present if t not in tissues]
            if left_out:
                shells = "one shell and b=0" if n_shells == 2 else f"{n_shells} shells with b=0"
                return (
                    tissues,
                    f"{names} are told apart by the signal ({why}); {shells} cannot tell {' and '.join(left_out)} from "
                    "them: its amount rests on what the network learnt",
                )
            return tissues, f"{names} are told apart by the signal ({why})"
    why = "no other tissue can be told apart from it in these data" if len(present) > 1 else "no other tissue was found"
    return ("wm",), f"the signal tells no tissue from WM: {why}"


def _fraction_error(model: np.ndarray, responses: Responses) -> float:
    """Return the largest standard error of a tissue's share of the WM b=0 signal, at the assumed SNR."""
    values = np.linalg.svd(model, compute_uv=False)
    if len(model) < model.shape[1] or values[-1] < 1e-9 * values[0]:
        return np.inf
    return float(np.sqrt(np.linalg.inv(model.T @ model).diagonal().max()) / ASSUMED_SNR)
