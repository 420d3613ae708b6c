"""A simulated head with known responses."""

import numpy as np

from shd_bids import simulation

MICRO = simulation.Microstructure(
    axonal=np.full(40, 0.6), axial=np.full(40, 1.9e-3), radial=np.full(40, 0.5e-3), kappa=np.full(40, 40.0)
)


AFFINE = np.diag([-2.0, 2, 2, 1])


SIZE = 26


def head(rng, *, shells, snr):
    """Simulate thin and thick straight bundles in grey matter beside a lake of CSF."""
    table = simulation.make_gradients(rng, shells, n_b0=4)
    s = np.arange(-SIZE, SIZE, 0.25)[:, None]
    bundles = tuple(
        simulation.Bundle(rng.uniform(4, SIZE - 4, 3) + s * axis, np.full(len(s), rng.uniform(1.5, 3)))
        for axis in simulation.uniform_directions(rng, 8, n_steps=20)
    )
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), axis=-1) - SIZE / 2
    lake = 1 / (1 + np.exp((np.linalg.norm(grid * [1, 1, 0.6] + [4, 0, 0], axis=-1) - 5) / 0.4))
    phantom = simulation.build_phantom(bundles, (SIZE,) * 3, csf=lake)
    signal = 1000 * simulation.noiseless_signal(phantom, MICRO, table)
    mask = np.linalg.norm(grid, axis=-1) < SIZE / 2 - 1
    return simulation.add_noise(signal, 1000 / snr, rng) * mask[..., None], mask, table, phantom
