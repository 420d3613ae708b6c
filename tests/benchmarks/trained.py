"""Compare trained networks on volumes for development; prints one table for each protocol and noise level.

    python tests/benchmarks/trained.py [NAME=WEIGHTS ...] [--rows ...] [--seeds 6] [--side 5] [--threads 1] [--save] [--compare]

The shipped weights (``shipped``) go first. Method and measures are those of ``tissue.py``; axes, microstructure and noise are of
other seeds, spreads and angles are others. Cells of a table are means over ``seeds`` volumes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import dispersed
import peers
import results
from dispersed import Configuration
from tissue import measure_volumes, table

from shd_bids.fod.weights import load_weights

ROWS = (("ABCD", 30), ("b1000", 30), ("b1000", 15))
CONFIGURATIONS = (
    *(Configuration(f"dispersed {a}x{a}", ((a, a),)) for a in (19, 23)),
    *(Configuration(f"fanned {a}x{b}", ((a, b),)) for a, b in ((18, 7), (20, 8), (25, 8))),
    *(
        Configuration(f"crossing {angle}, {a}x{a}, {share}/{100 - share}", ((a, a),) * 2, angle, (share / 100, 1 - share / 100))
        for (angle, a), share in product(((41, 9), (41, 14), (60, 13), (60, 19)), (50, 60))
    ),
)  # fmt: skip
_FIRST_SEED = 6001


def main() -> int:
    """Run every row with every network, and print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    networks = {
        name: partial(peers.ours, weights=load_weights(path), to_border=True)
        for name, path in [("shipped", None), *options.networks]
    }
    figures = []
    for protocol, snr in (ROWS[number] for number in options.rows):
        make = partial(dispersed.make_volume, protocol, snr, side=options.side, configurations=CONFIGURATIONS)
        volumes = (make(seed=seed) for seed in range(_FIRST_SEED, _FIRST_SEED + options.seeds))
        pooled, seconds = measure_volumes(volumes, networks, rule="amortised")
        print(*table(f"{protocol}, SNR {snr}", pooled, seconds), sep="\n", flush=True)
        figures += peers.figures_of(f"{protocol}, {snr}", pooled, None, threads=options.threads)
    return results.finish("trained", figures, options)


def _network(text: str) -> tuple[str, Path]:
    """Read ``NAME=WEIGHTS``."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"expected NAME=WEIGHTS, found {text!r}")
    return name, Path(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", type=_network, metavar="NAME=WEIGHTS")
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))), choices=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--side", type=int, default=5, help="of a cube, voxels")
    parser.add_argument("--threads", type=int, default=1)
    results.add_options(parser)
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
