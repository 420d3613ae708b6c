"""Let the data of each voxel refine the answer of the network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.amplitudes import fit_amplitudes
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.fod.refinement.orientation import Alignment, held_out_prior
from shd_bids.fod.refinement.updates import DataUpdates, held_out_updates
from shd_bids.scan import Scan
from shd_bids.threads import reporting, run_on_threads

_SAMPLE = 2000  # voxels that decide how far results follow the data
_VOXELS_PER_CHUNK = 4096  # x (768 lobe weights + 300 volumes) x 4 bytes = 18 MB, for each thread


def refine_fod(
    fod: FOD,
    scan: Scan,
    config: RefinementConfig,
    *,
    rounds: bool = False,
    progress: Callable[[float], None] | None = None,
) -> tuple[FOD, int]:
    """Move the answer of a network towards the data as far as that predicts held-out directions better.

    A network that was trained on simulations knows what fODFs look like; the signal knows what it is. The data turn the fODF
    of each voxel as a whole and scale the tissues. Where that predicts better, the fODF is written as a sum of narrow lobes, and
    ISRA moves their weights towards the deconvolution of the voxel.

    Parameters
    ----------
    fod : FOD
        Answer of the network; its fODFs are overwritten by the result.
    scan : Scan
    config : RefinementConfig
    rounds : bool
        Whether products that decompose fODFs are in bfloat16.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    fod : FOD
    n_updates : int
        Updates by the data; 0 where the scaled answer of the network predicts best.
    """
    dictionary = LobeDictionary.of(scan, config, l_max=fod.l_max, rounds=rounds)
    sample = slice(None, None, max(1, len(fod) // _SAMPLE))
    sampled, signal = fod[sample], dictionary.signal_of(scan, sample)
    freedom = held_out_prior(sampled, signal, scan, dictionary)

    def alignment(volumes: np.ndarray) -> Alignment:
        return Alignment(scan, dictionary, l_max=fod.l_max, prior=freedom, volumes=volumes)

    def prior_of_sample(part: slice, volumes: np.ndarray) -> FOD:
        turned = alignment(volumes)(sampled[part], signal[part])
        return fit_amplitudes(turned, signal[part], dictionary)

    n_updates = held_out_updates(prior_of_sample, signal, scan.gradients, dictionary)
    follow_data = DataUpdates(dictionary, n_updates)
    align = alignment(np.arange(scan.gradients.n_volumes))
    parts = chunks(len(fod), _VOXELS_PER_CHUNK)

    def refine(part: slice) -> None:
        measured = dictionary.signal_of(scan, part)
        fod[part] = follow_data(fit_amplitudes(align(fod[part], measured), measured, dictionary), measured)

    run_on_threads(reporting(refine, len(parts), progress), parts)
    return fod, n_updates
