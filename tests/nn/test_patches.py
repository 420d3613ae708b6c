"""A network on the patch around each voxel: the published evaluation, voxel by voxel."""

import numpy as np
import pytest
import torch

from shd_bids.nn import patches
from shd_bids.nn.patches import apply_to_patches, on_hemisphere
from shd_bids.sphere.healpix import hemisphere_lookup
from tests.nn.networks import build, field
from tests.nn.oracle import unet

SHAPE = (4, 3, 6)


def mask_with_a_hole():
    mask = np.ones(SHAPE, dtype=bool)
    mask[2, 1, 2] = False
    mask[:, :, 4] = False
    return mask


def run(net, x, mask, *, memory_bytes=1 << 30):
    """Evaluate on patches and check the contract; give what was written."""
    found = torch.full((1, 2, *mask.shape, x.shape[-1]), torch.nan, dtype=x.dtype)
    written, told = np.zeros(mask.shape, int), []

    def write(box, values):
        found[(slice(None), slice(None), *box)] = values
        written[box] += 1

    read = lambda box: x[(slice(None), slice(None), *box)]  # noqa: E731
    apply_to_patches(net, mask, read=read, write=write, memory_bytes=memory_bytes, progress=told.append)
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    assert written.max() == 1 and written[mask].all()
    return found


def by_the_oracle(net, x, mask):
    """Evaluate the dense network on the patch around each voxel, one after another."""
    half = net.config.patch_size // 2
    clean = torch.where(torch.from_numpy(mask)[..., None], x, 0)
    clean = torch.nn.functional.pad(clean, (0, 0, *[half] * 6))
    found = x.new_zeros(1, 2, *mask.shape, x.shape[-1])
    for place in np.argwhere(mask):
        i, j, k = (slice(n, n + net.config.patch_size) for n in place)
        patch = clean[:, :, i, j, k]
        if not net.config.hemisphere:
            patch = patch[..., torch.tensor(hemisphere_lookup(net.config.nside))]
        found[:, :, *place] = unet(patch, net)[:, :, half, half, half, _kept(net)]
    return found


def _kept(net):
    n = 6 * net.config.nside**2
    lookup = hemisphere_lookup(net.config.nside)
    first = {int(row): vertex for vertex, row in reversed(list(enumerate(lookup)))}
    return slice(None) if net.config.hemisphere else torch.tensor([first[row] for row in range(n)])


@pytest.mark.slow
@pytest.mark.parametrize("hemisphere", [True, False])
@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_each_voxel_gets_the_centre_of_its_own_patch(generator, monkeypatch, patch_size, hemisphere):
    monkeypatch.setattr(patches, "_BLOCK", 3)
    net = build(nside=2, channels=(4, 6), form="patch", patch_size=patch_size, hemisphere=hemisphere)
    mask, x = mask_with_a_hole(), field(generator, *SHAPE)
    wanted = by_the_oracle(net, x, mask)
    x[:, :, ~torch.from_numpy(mask)] = torch.nan
    found = run(net, x, mask)
    torch.testing.assert_close(found[:, :, mask], wanted[:, :, mask], rtol=0, atol=1e-9)


def test_memory_changes_nothing(generator):
    net = build(nside=2, channels=(4, 6), form="patch")
    mask, x = mask_with_a_hole(), field(generator, *SHAPE)
    torch.testing.assert_close(run(net, x, mask, memory_bytes=1)[:, :, mask], run(net, x, mask)[:, :, mask])


def test_a_network_on_the_sphere_takes_and_gives_the_hemisphere(generator):
    half, whole = (build(nside=2, channels=(4, 6), hemisphere=h) for h in (True, False))
    x = field(generator, 2, 4, 2)
    torch.testing.assert_close(on_hemisphere(whole, x), on_hemisphere(half, x), rtol=0, atol=1e-9)


def test_a_network_for_volumes_is_refused():
    with pytest.raises(ValueError, match="in volume form"):
        apply_to_patches(
            build(nside=2, channels=(4, 6)), np.ones((2, 2, 2), bool), read=None, write=None, memory_bytes=1
        )
