"""The network over a whole volume, in tiles and slabs, within the memory there is."""
