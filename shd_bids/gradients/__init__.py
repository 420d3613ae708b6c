"""Gradient tables: shells, frames and files, the check of their orientation, tensors and noise."""
