"""What is done to the fODF of the network, voxel by voxel, to follow the data."""
