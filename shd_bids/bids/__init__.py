"""BIDS: what is read from data sets and how outputs are named and described."""
