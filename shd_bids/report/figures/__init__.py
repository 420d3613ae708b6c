"""Pictures of every stage: arrays in, one PNG out; matplotlib only, no display, no OpenGL.

All slices are shown in world orientation (left on the left), and directions are coloured by world axes: red
left-right, green front-back, blue up-down. Values "in mask order" follow ``array[mask]``. Where there is nothing to
draw, a panel says so.
"""

from shd_bids.report.figures.connectome import plot_connectomes
from shd_bids.report.figures.fod import plot_fod, plot_peaks, plot_residual, plot_tissue, plot_training
from shd_bids.report.figures.inputs import plot_gradients, plot_mask, plot_response
from shd_bids.report.figures.scenes import Ground, save_fod_scene, save_peaks_scene, save_tracks_scene
from shd_bids.report.figures.thumbnail import plot_thumbnail
from shd_bids.report.figures.tracks import plot_streamlines, plot_tdi

__all__ = [
    "Ground",
    "plot_connectomes",
    "plot_fod",
    "plot_gradients",
    "plot_mask",
    "plot_peaks",
    "plot_residual",
    "plot_response",
    "plot_streamlines",
    "plot_tdi",
    "plot_thumbnail",
    "plot_tissue",
    "plot_training",
    "save_fod_scene",
    "save_peaks_scene",
    "save_tracks_scene",
]
