"""The scale of the published method: the predicted signal without weighting is the measured one."""

from __future__ import annotations

import numpy as np

from shd_bids.fod.fod import FOD
from shd_bids.scan import Scan

_LEAST = 1e-3  # of the predicted signal at b=0, relative to white matter


def match_b0(fod: FOD, scan: Scan) -> FOD:
    r"""Scale the amplitudes of all tissues in each voxel so that the mean signal at b=0 is the measured one.

    .. math:: c_t \leftarrow c_t \, S_0 \Big/ \sum_t c_{t,00}\, r_{t,b_0,0}

    So the network decides proportions and shapes alone (Elaldi, Gerig and Dey 2024, NeurIPS). Tissues without a response become
    zero.
    """
    model, b0 = scan.forward(fod.l_max), scan.gradients.b0_indices
    coefficients = np.concatenate([fod.wm, fod.isotropic(model)], axis=1)
    predicted = coefficients @ model.matrix[b0].mean(dim=0).numpy()
    factor = scan.voxels[:, b0].mean(axis=1) / np.maximum(predicted, _LEAST * scan.scale)
    gm, csf = (getattr(fod, tissue) * factor * (tissue in model.tissues) for tissue in ("gm", "csf"))
    return FOD(fod.wm * factor[:, None], gm, csf)
