"""Protocols: equal within what scanners and cut scans vary by, different between sites."""

import json
from dataclasses import replace

import pytest

from shd_bids.bids.protocol import Protocol, by_protocol
from tests.bids_trees import dwi_run

SIDECAR = {"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma ", "MagneticFieldStrength": 3, "EchoTime": 0.08}
SHELLS = ((0.0, 4), (1000.0, 30), (2000.0, 60))


@pytest.fixture
def run(tmp_path):
    return dwi_run(tmp_path, shells=SHELLS, sidecar=SIDECAR)


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        ({"shells": ((0.0, 9), (1005.0, 30), (1950.0, 60))}, True),
        ({"shells": ((0.0, 4), (1000.0, 28), (2000.0, 60))}, True),
        ({"shells": ((0.0, 4), (1000.0, 20), (2000.0, 60))}, False),
        ({"shells": ((0.0, 4), (1100.0, 30), (2000.0, 60))}, False),
        ({"shells": SHELLS[:2]}, False),
        ({"voxel_size": (2.0, 2.0, 2.03)}, True),
        ({"voxel_size": (2.0, 2.0, 2.2)}, False),
        ({"sidecar": SIDECAR | {"EchoTime": 0.09}}, True),
        ({"sidecar": SIDECAR | {"StationName": "B"}}, False),
        ({"sidecar": SIDECAR | {"MagneticFieldStrength": 7}}, False),
        ({"sidecar": {}}, False),
    ],
)
def test_what_counts_as_the_same_protocol(run, change, agrees):
    one, other = Protocol.of(run), Protocol.of(replace(run, **change))
    assert one.agrees_with(other) == other.agrees_with(one) == agrees


def test_json_and_back_is_the_same(run):
    protocol = Protocol.of(run)
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert str(protocol) == "b=1000: 30, b=2000: 60; 2 x 2 x 2 mm; Siemens Prisma 3 T"


def test_series_join_the_protocol_that_is_known(run):
    cut = replace(run, shells=((0.0, 4), (1000.0, 28), (2000.0, 60)))
    elsewhere = replace(run, sidecar={"StationName": "B"})
    known = Protocol.of(replace(run, shells=((0.0, 1), (1010.0, 29), (2000.0, 60))))
    unused = Protocol.of(replace(run, voxel_size=(1.0, 1.0, 1.0)))
    assert by_protocol([run, elsewhere, cut]) == {Protocol.of(run): [run, cut], Protocol.of(elsewhere): [elsewhere]}
    assert by_protocol([run, cut], [unused, known]) == {known: [run, cut]}
