"""Compiled operators, and the memory that they and the network use."""
