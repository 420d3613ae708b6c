// What the threads of one call share, whatever the instruction set.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "interface.h"

namespace shd {

constexpr int kShells = 4, kMostRows = 16;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Threads of one call, meeting between phases. Spinning is short since phases last milliseconds; then the core is given away.
class Barrier {
public:
  explicit Barrier(int members) : members_(members) {}
  void wait() {
    if (members_ == 1) return;
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin)
      if (spin > 1000) std::this_thread::yield();
  }

private:
  const int members_;
  std::atomic<int> arrived_{0}, round_{0};
};

// Input on cells that its voxels copy, and the ring of those of its planes that are worked on.
struct Cells {
  int channels;
  int64_t ring, planes, y, z, begin, end; // from begin to end: planes analysed since the last products
  float *expansion, *products; // of analysed planes; of their products with the weights, [mode][plane][4][cell][out]
};

inline float *take(float *&free, int64_t size) {
  float *taken = free;
  free += round_up(size, 16);
  return taken;
}

// Everything the threads of one call share.
struct Job {
  const ShdBasis *basis;
  const ShdLayer *layer;
  int64_t planes, plane_voxels, x; // planes of the whole call; voxels of one; planes of one batch element
  int64_t first, last;             // planes that are computed
  int64_t group, ring, halo;       // planes worked on at once; planes held; planes needed on each side
  int64_t span, lines;             // planes, and lines along z of each, that shells and product take at once
  int channels;                    // of all inputs together
  int fine, fine_channels;         // inputs that lie on voxels, and their channels
  Cells cells;                     // the other, if any
  const float *const *inputs;      // forward: x, or null if all is analysed; backward: x
  const ShdSlab *slab;             // analyse: what came, and of which input
  int input;
  float *const *input_gradients;   // backward; entries may be null
  const float *output_gradient;    // backward
  float *output;                   // forward
  const float *bias;
  bool relu;
  const float *analyse_panels, *synthesise_panels; // block matrices in panels of rows
  const float *sph, *spa;                          // weights with the vectorised channel innermost, padded
  const float *spa_cells;                          // forward: see combined_shells
  float *expansion;                                // ring of analysed planes (forward: inputs; backward: output gradient)
  float *input_expansion;                          // backward: inputs of the group
  float *gradient_sph, *gradient_spa;              // backward: per thread
  float *scratch;                                  // [thread][scratch_size]
  int64_t scratch_size;
  std::atomic<int64_t> *counters;                  // one per phase, for dynamic scheduling
  Barrier *barrier;
};

constexpr int kTile = 64;      // columns of a change of basis
constexpr int64_t kSlack = 32; // tiles may read one panel past the end
constexpr int64_t kBlock = 256; // voxels whose shell sums stay in cache until they are used
// Of a small layer's expansion no more is held than an eighth, as it would count; below the least, more is faster.
constexpr int64_t kHeldShare = 8, kLeastHeld = 24 << 20;

inline int64_t tile_size(const Job &job) { return 2 * int64_t(job.basis->vertices) * kTile; }
// Arrays used together are kept from starting at equal addresses modulo a page, where the processor takes a load for the
// store before it.
inline int64_t plane_stride(int64_t plane) { return round_up(plane, 16) + 5 * 16; }
inline int64_t sum_size(const Job &job, int channels) {
  return job.halo ? plane_stride(job.span * job.lines * job.layer->shape.z * channels) + kSlack : 0;
}
inline int64_t neighbours_size(const Job &job, int channels) {
  return job.halo ? plane_stride(job.layer->shape.z * channels) * 4 : 0;
}
inline int64_t gradient_size(const Job &job) {
  return int64_t(job.channels) * job.layer->out_channels * (job.halo ? kShells : 1) + kSlack;
}
inline int widest(const Job &job) { return *std::max_element(job.layer->in_channels, job.layer->in_channels + job.fine); }
inline int64_t weights_size(const Job &job, int rows, int columns) {
  return int64_t(rows) * (job.halo ? kShells : 1) * round_up(columns, kSlack);
}

// Pairs of bfloat16 from one row of the product to the next: cache lines, of long rows an odd number.
inline int64_t row_pairs(const Job &job) {
  const int64_t lines = round_up((job.halo ? kShells : 1) * job.fine_channels, 32) / 32;
  return 16 * (lines < 8 ? lines : lines | 1);
}
// Numbers of the rows of a block in bfloat16 and of those that a tile may read beyond; without shell sums, of one tile.
inline int64_t rows_size(const Job &job) {
  return ((job.halo ? job.span * job.lines * job.layer->shape.z : 0) + kMostRows) * row_pairs(job) + kSlack;
}
// The same of the input on cells.
inline int64_t factors_size(const Job &job) { return kMostRows * round_up(job.cells.channels, 2) / 2 + kSlack; }

// Weights of a mode for the input on cells: four matrices, each in panels of its own.
inline int64_t cell_matrix(const Job &job) { return job.cells.channels * round_up(job.layer->out_channels, kSlack); }
inline int64_t cell_line(const Job &job) { return plane_stride((job.cells.z + 2) * job.layer->out_channels); }
inline int64_t cell_lines_size(const Job &job) {
  return job.cells.channels ? 3 * cell_line(job) + 6 * plane_stride(job.layer->shape.z * job.layer->out_channels) : 0;
}

// One input: rows of `channels` for each vertex, plane and voxel of the plane, with the marks of those that are read.
struct Source {
  const float *data;
  int channels;
  int64_t stride, plane_voxels; // numbers of one vertex
  const uint8_t *read;
  const int64_t *parent; // row of each vertex, or null where it is its own
};

// Rows of `length` values, one after another.
struct Segment {
  const float *data;
  int64_t length;
};

// Elementwise work on rows of channels.
struct RowJob {
  int channels;
  const float *y, *gradient, *scale, *shift, *centre, *offset, *slope;
  float *out;
};

// Sums over boxes: out[vertex][batch][x][y][z] takes vertices index[vertex][...] and voxels [start, end) along each axis.
struct BoxJob {
  int64_t out_vertices, batch, in_size[3], out_size[3];
  int channels, sources;
  const int64_t *index, *start[3], *end[3];
  float factor;
  const float *in;
  float *out;
};

} // namespace shd
