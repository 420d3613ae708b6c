"""Streamlines through fODFs, their density and their files."""
