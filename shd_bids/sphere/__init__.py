"""The sphere: HEALPix sampling, its graph Laplacian and symmetry, and even real spherical harmonics."""
