"""What is refused before anything runs."""

import pytest

from shd_bids.cli.preflight import require_names
from shd_bids.errors import InputError
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run


def test_names_of_outputs_must_be_possible(tmp_path):
    settings = Settings(bids_dir=tmp_path / "raw", output_dir=tmp_path / "out")
    usual, long = (dwi_run(tmp_path, entities={"sub": "01", "acq": "a" * n}) for n in (100, 200))
    require_names([usual], settings)
    with pytest.raises(InputError, match="shorten the labels") as caught:
        require_names([usual, long], settings)
    assert len(caught.value.problems) == 1
