"""The layers of the network, each with its derivative."""
