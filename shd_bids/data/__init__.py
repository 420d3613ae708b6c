"""Weights that ship with the package, their checksum, and their model card.

After new weights: ``cd shd_bids/data && sha256sum shd_bids.safetensors > shd_bids.safetensors.sha256``.
"""

import hashlib
from importlib import resources
from pathlib import Path

from shd_bids.errors import WeightsError

SHIPPED = "shd_bids.safetensors"


def shipped_weights() -> Path:
    """Return the weights file of the package after a comparison with its checksum.

    Raises
    ------
    WeightsError
        A file is missing, or its content is not the one that was shipped.
    """
    path = Path(str(resources.files(__name__) / SHIPPED))
    try:
        expected = path.with_name(f"{SHIPPED}.sha256").read_text("utf-8").split()[0]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{path}: cannot be read together with its checksum ({type(error).__name__}); install the package again"
        ) from error
    if found != expected:
        raise WeightsError(f"{path}: SHA-256 is {found}, expected {expected}: damaged; install the package again")
    return path
