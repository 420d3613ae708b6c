"""What a batch of streamlines holds."""

import weakref

from shd_bids.options import TrackingOptions
from shd_bids.tractography.track import track
from shd_bids.tractography.tracker import Batch
from tests.tractography.test_track import straight_field


def test_points_of_a_batch_are_freed_when_it_is_kept():
    """Memory does not grow with the number of streamlines: of all batches, none but the last holds its points."""
    owners: list[weakref.ref] = []

    def keep(batch: Batch) -> None:
        owner = batch.points if batch.points.base is None else batch.points.base
        assert not any(points() is not None for points in owners)
        owners.append(weakref.ref(owner))

    options = TrackingOptions(seeds=20, select=1900, tracking_cutoff=0.1, min_length=20.0)
    track(straight_field(), options, keep)
    assert len(owners) > 3
