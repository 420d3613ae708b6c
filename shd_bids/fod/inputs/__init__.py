"""What the network is given."""
