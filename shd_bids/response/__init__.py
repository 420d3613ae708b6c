"""Tissue responses: their estimate from the data, their text form, and the forward operator made of them."""
