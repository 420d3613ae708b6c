"""Tissue responses: their estimate from the data, their text form, and the forward operator made of them."""

TISSUES = ("wm", "gm", "csf")
"""Names of the tissues in the order of every array and file: white matter, grey matter, cerebrospinal fluid."""
