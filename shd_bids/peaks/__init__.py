"""Fibre directions of fODFs, and what else is read off them."""
