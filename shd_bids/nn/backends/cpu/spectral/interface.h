// What the entry points, which Python calls, are given.

#pragma once

#include <cstdint>

extern "C" {

// Eigenbasis in factored form (see shd_bids.sphere.symmetry), with the scale of S moved into the block matrices.
struct ShdBasis {
  int32_t vertices, distinct, order, blocks;
  const int32_t *size, *copies;                 // [blocks]
  const int32_t *analyse_start, *analyse_index; // rows of S^T, entries +-1
  const float *analyse_sign;
  const int32_t *synthesise_start, *synthesise_index; // rows of S
  const float *synthesise_sign;
  const float *analyse_matrix, *synthesise_matrix; // per block, row-major (size, size), out x in
  const float *terms;                              // [distinct][order]
};

struct ShdShape {
  int64_t batch, x, y, z;
};

// One layer. Inputs act as concatenated along channels. A null `weight_spa` means no spatial kernel.
struct ShdLayer {
  ShdShape shape;
  int32_t inputs, out_channels;
  const int32_t *in_channels; // [inputs]
  const float *weight_sph;    // [out][in][order]
  const float *weight_spa;    // [out][in][4]
  int32_t threads, level;     // level: instruction set, see shd_best_level
  int64_t cache_bytes;        // size of the expansion held at once, at most
  // Marks, [planes][y z], of a volume whose planes come a few at a time: voxels whose result matters, all voxels they depend on
  // (the others are left as they are), and those whose input is not zero. Null: all.
  const uint8_t *wanted, *read, *inside;
  // Forward only: the last input lies on cells of 2 x 2 x 2 voxels and on a coarser grid, of which each vertex copies one, and
  // is read as if it were copied to all of them. With the marks of the cells. Null: it is like the others.
  const int64_t *parent;
  const uint8_t *read_cells, *inside_cells;
  // Of a volume whose planes come a few at a time, what stays from call to call: rings of so many analysed planes of each input,
  // [vertex][ring][y z][channel], and in that of cells also of products, [vertex][ring][4][y z][out].
  float *held;
  int64_t ring, cells_ring;
};

// Planes of an input that came, in a rectangle of so many lines and voxels of a line, of which the layer's begins at (low, left).
struct ShdSlab {
  const float *data; // [vertex][planes][lines][line][channel]
  int64_t first, planes, lines, line, low, left;
};
}
