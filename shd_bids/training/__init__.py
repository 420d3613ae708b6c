"""How the network learns: from simulated volumes, and on scans themselves."""
