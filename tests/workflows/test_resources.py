import pytest

from shd_bids.workflows import resources


@pytest.mark.parametrize(
    ("device", "has_driver", "expected"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("cpu", True, False),
        ("cuda:1", False, True),  # the call says so; whether it is there is asked of torch
    ],
)
def test_a_gpu_may_be_used_where_it_is_asked_for_or_has_a_driver(monkeypatch, tmp_path, device, has_driver, expected):
    driver = tmp_path / "driver"
    if has_driver:
        driver.touch()
    monkeypatch.setattr(resources, "DRIVERS", (driver,))
    assert resources.may_use_gpu(device) is expected
