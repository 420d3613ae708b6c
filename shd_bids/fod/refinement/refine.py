"""Let the data of each voxel refine the answer of the network: a chain of steps on lobe weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.fod import FOD, VOXELS_PER_CHUNK
from shd_bids.fod.refinement.amplitudes import fit_amplitudes
from shd_bids.fod.refinement.crossings import split_crossings
from shd_bids.fod.refinement.dictionary import LobeDictionary, LobeField
from shd_bids.fod.refinement.elongation import measure_elongation
from shd_bids.fod.refinement.updates import DataUpdates, held_out_updates
from shd_bids.scan import Scan

_SAMPLE = 2000  # voxels that decide on the number of updates


def refine_fod(fod: FOD, scan: Scan, config: RefinementConfig, *, trained_kappa: float) -> tuple[FOD, int]:
    """Move the answer of a network towards the data as far as that predicts held-out directions better.

    A network that was trained on simulations knows what fODFs look like; the signal knows what it is. Its answer is taken apart
    into lobes, which undoes the width that they had in the training, and a long thin lobe, or one that the data of many voxels
    say is long, becomes two. The data then scale the tissues of each voxel and move the lobe weights towards its deconvolution.

    Parameters
    ----------
    fod : FOD
        Answer of the network; its fODFs are overwritten by the result.
    scan : Scan
    config : RefinementConfig
    trained_kappa : float
        Concentration of the lobe that stood for a fibre in the training.

    Returns
    -------
    fod : FOD
    n_updates : int
        Updates by the data; 0 where the scaled answer of the network predicts best.
    """
    dictionary = LobeDictionary.of(scan, config, l_max=fod.l_max)
    kappa = dictionary.width_in(fod, trained_kappa=trained_kappa)
    elongation = measure_elongation(fod, scan, scale=dictionary.scale, noise=dictionary.noise)

    def prior(part: slice) -> tuple[LobeField, np.ndarray]:
        signal, lobes = dictionary.signal_of(scan, part), dictionary.decompose(fod[part], kappa)
        lobes = replace(lobes, weights=split_crossings(lobes.weights, dictionary.axes, elongation[part]))
        return fit_amplitudes(lobes, signal, dictionary), signal

    sample = slice(None, None, max(1, len(fod) // _SAMPLE))
    n_updates = held_out_updates(*prior(sample), scan.gradients, dictionary)
    follow_data = DataUpdates(dictionary, n_updates)
    for part in chunks(len(fod), VOXELS_PER_CHUNK):
        fod[part] = dictionary.expand(follow_data(*prior(part)))
    return fod, n_updates
