"""Names of the facts in the tests of the report."""

PREFIX = "sub-01_acq-x"


def column(value):
    return {"value": value}
