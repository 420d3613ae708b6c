"""Responses given as files: read by the tissue in the name, refused where no signal is like that."""

import pytest

from shd_bids.errors import InputError
from shd_bids.response.given import read_given

WM = "# Shells: 0,1000,2000\n900 0 0\n500 -120 20\n320 -130 40\n"


def write(folder, text, name="group_wm.txt"):
    path = folder / name
    path.write_text(text)
    return path


def test_tissues_come_from_the_names(tmp_path):
    csf = write(tmp_path, "# Shells: 0,1000,2000\n3000\n150\n20\n", "CSF.txt")
    responses = read_given([csf, write(tmp_path, WM)], [0, 1010, 1990])
    assert [response.tissue for response in responses.tissues] == ["wm", "csf"]
    assert responses.wm.bvalues.tolist() == [0, 1010, 1990]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (WM.partition("\n")[2], "no line '# Shells"),
        (WM.replace("320 -130", "620 -130"), "rises from 500 at b = 1000 to 620 at b = 2000"),
        (WM.replace("900", "400"), "rises from 400 at b = 0"),
        (WM.replace("900", "1e300"), r"mean signals from 320 to 1e\+300"),
        (WM.replace("320", "1e-300"), "mean signals from 1e-300"),
        (WM.replace("-130", "-1e300"), "too large for a signal"),
        (WM.replace("900", "inf"), "expected finite"),
        (WM.replace("-130 40", "-130 nan"), "expected finite"),
        (WM.replace("-130", "130"), "second number is above 0 at b = 2000"),
        (WM.replace("900 0 0\n", ""), "2 rows, expected 3"),
        ("\udce9", "cannot be read as text"),
    ],
)
def test_what_no_signal_is_like_is_refused_without_an_image(tmp_path, text, told):
    path = tmp_path / "wm.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=told) as caught:
        read_given([path])
    assert all(str(path) in problem for problem in caught.value.problems)


def test_problems_of_all_files_are_told_together(tmp_path):
    files = [write(tmp_path, "600 0\n300 -50\n"), write(tmp_path, "600\n", "gm.txt")]
    with pytest.raises(InputError) as caught:
        read_given(files)
    assert len(caught.value.problems) == 2
