"""A simulated study of two sites with other protocols and gains: one subject broken, one noisy, one bright.

One subject has two sessions, and one was scanned twice. All scans are of one head, so that sites should find the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from shd_bids import simulation
from shd_bids.gradients.frames import world_to_fsl
from shd_bids.gradients.table import GradientTable
from tests.bids_trees import write_description
from tests.phantoms import RAS

PROTOCOLS = {"A": {1000.0: 16, 2500.0: 24}, "B": {1000.0: 20, 2000.0: 20}}
GAINS = {"A": 1.0, "B": 1.7}
SCANS = {
    "A": ("sub-A1", "sub-A2", "sub-A3", "sub-A4", "sub-A5", "sub-A6/ses-1", "sub-A6/ses-2"),
    "B": ("sub-B1", "sub-B2", "sub-B3", "sub-B4", "sub-B5", "sub-B6_run-1", "sub-B6_run-2"),
}
BROKEN, NOISY, BRIGHT = "sub-B2", "sub-A2", "sub-B4"
BRIGHTER = 1.7
SNR, SNR_NOISY = 40, 6
B0_SIGNAL = 500.0


def write_study(raw: Path, *, size: int = 10) -> None:
    """Write the twelve subjects; every scan has noise of its own, and a gain within some percent of its site's."""
    write_description(raw, Name="two sites")
    lines = ["participant_id\tsite"]
    rng = np.random.default_rng(7)
    for site, names in SCANS.items():
        clean, table = head(PROTOCOLS[site], size=size)
        for name in names:
            subject = name[:6]
            gain = GAINS[site] * (BRIGHTER if subject == BRIGHT else np.exp(0.01 * rng.normal()))
            snr = SNR_NOISY if subject == NOISY else SNR
            write_scan(raw, name, gain * noisy(clean, rng, snr=snr), table, site=site)
            lines.append(f"{subject}\t{site}")
    (raw / "participants.tsv").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    (raw / BROKEN / "dwi" / f"{BROKEN}_dwi.bvec").write_text("0 0\n0 0\n0 0\n")


def head(shells: Mapping[float, int], *, size: int) -> tuple[np.ndarray, GradientTable]:
    """Return the signal (X, Y, Z, N) of the head by a protocol, without noise, and the gradients."""
    rng = np.random.default_rng(0)
    phantom = simulation.crossing_phantom(rng, size=size, angles=(70.0,))
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    table = simulation.make_gradients(rng, dict(shells), n_b0=4)
    return B0_SIGNAL * simulation.noiseless_signal(phantom, micro, table), table


def noisy(clean: np.ndarray, rng: np.random.Generator, *, snr: float) -> np.ndarray:
    """Return a scan of the head; the signal-to-noise ratio is that of white matter at b=0."""
    return B0_SIGNAL * simulation.add_noise(clean / B0_SIGNAL, 1 / snr, rng)


def write_scan(raw: Path, name: str, signal: np.ndarray, table: GradientTable, *, site: str = "") -> None:
    """Write a scan, ``name`` being subject, session after ``/`` and run after ``_``; ``site`` names its scanner."""
    folder, _, run = name.partition("_")
    subject, _, session = folder.partition("/")
    parts = [part for part in (subject, session, run, "dwi") if part]
    stem = raw.joinpath(*folder.split("/"), "dwi", "_".join(parts))
    stem.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(signal.astype(np.float32), RAS), f"{stem}.nii.gz")
    np.savetxt(f"{stem}.bval", table.bvals[None], fmt="%.1f")
    np.savetxt(f"{stem}.bvec", world_to_fsl(table.directions, RAS).T, fmt="%.8f")
    Path(f"{stem}.json").write_text(json.dumps({"StationName": site} if site else {}))
