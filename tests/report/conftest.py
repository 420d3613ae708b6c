"""Facts of a finished run."""

import pytest

from tests.report.facts import column


@pytest.fixture
def facts():
    """Facts as the stages write them."""
    return {
        "gradients": {
            "shells": [{"bvalue": 0.0, "n_volumes": 3}, {"bvalue": 1000.0, "n_volumes": 32}],
            "sidecar": {"mask_origin": "estimated"},
            "notes": ["no mask was given"],
            "orientation_check": {"is_given_best": True, "is_conclusive": True, "message": "the directions fit"},
            "qc": {f"voxel_size_{axis}": column(2.5) for axis in "xyz"} | {"mask_volume_ml": column(1432.4)},
            "seconds": 4.0,
            "peak_memory_mb": 700,
        },
        "response": {"fitted_tissues": ["wm", "csf"], "seconds": 2.0, "peak_memory_mb": 800},
        "fod": {
            "info": {
                "device": "cpu",
                "precision": "mixed",
                "fit": "amortised",
                "weights": "w",
                "weights_sha256": "0123456789abcdef" * 4,
                "method": "conditioned",
                "is_supervised": True,
                "is_refined": True,
            },
            "sidecar": {"fod_lmax": 12},
            "notes": ["signal-to-noise ratio 3"],
            "qc": {"fit_r2_median": column(0.934), "snr": column(21.0)},
            "seconds": 130.0,
            "peak_memory_mb": 3100,
        },
        "peaks": {"sidecar": {"peaks": {"PeakMinimumSeparation": 25.0}}, "seconds": 9.0, "peak_memory_mb": 1500},
        "tractography": {
            "sidecar": {
                "tractography": {
                    "StreamlinePropagation": {"Algorithm": {"Name": "prob"}, "StepSize": 0.5, "AnglePerStep": 45.0},
                    "StreamlineTermination": {
                        "Ends": {"grey matter": 30, "edge of the mask": 10},
                    },
                    "Anatomy": {"Type": "signal fractions of the tissues"},
                    "StreamlineReconstructionDensity": {"AcceptedStreamlines": 12345},
                }
            },
            "qc": {"n_streamlines": column(12345), "streamline_length_median": column(61.0)},
            "seconds": 40.0,
            "peak_memory_mb": 900,
        },
        "weights": {
            "sidecar": {"weights": {"StreamlineWeights": {"ProportionalityCoefficient": 0.125}}},
            "seconds": 5.0,
            "peak_memory_mb": 500,
        },
        "connectome": {
            "sidecar": {
                "connectomes": {
                    "seg-four": {
                        "AssignmentRadius": 4.0,
                        "Regions": 4,
                        "RegionsConnected": 3,
                        "ConnectedPairs": 2,
                        "ConnectedPairsShare": 1 / 3,
                        "Streamlines": 12345,
                        "StreamlinesAssigned": 11111,
                        "StreamlinesOneEndAssigned": 1000,
                        "StreamlinesWithinOneRegion": 1,
                    }
                }
            },
            "seconds": 1.0,
            "peak_memory_mb": 400,
        },
    }
