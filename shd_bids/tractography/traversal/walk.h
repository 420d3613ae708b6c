// The voxels that a segment crosses, with the share of it in each.

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace shd {

struct Grid {
  int32_t shape[3];
  const double *to_voxel; // rows of the affine from mm to voxels, whose centres are whole numbers

  // Voxel coordinates of a point, moved so that voxels begin at whole numbers.
  void place(const float *point, double *out) const {
    for (int row = 0; row < 3; ++row) {
      const double *m = to_voxel + 4 * row;
      out[row] = m[0] * point[0] + m[1] * point[1] + m[2] * point[2] + m[3] + 0.5;
    }
  }
  // Number of a voxel in C order, -1 outside.
  int64_t index(const int64_t *cell) const {
    for (int axis = 0; axis < 3; ++axis)
      if (cell[axis] < 0 || cell[axis] >= shape[axis]) return -1;
    return (cell[0] * shape[1] + cell[1]) * shape[2] + cell[2];
  }
};

// Call visit(cell, share) for each voxel between two places (Amanatides and Woo, Eurographics 1987).
template <class Visit> void walk(const double *from, const double *to, Visit visit) {
  int64_t cell[3], step[3];
  double next[3], delta[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double d = to[axis] - from[axis], low = std::floor(from[axis]);
    cell[axis] = int64_t(low);
    step[axis] = d > 0 ? 1 : -1;
    delta[axis] = d != 0 ? std::abs(1 / d) : std::numeric_limits<double>::infinity();
    next[axis] = d > 0 ? (low + 1 - from[axis]) / d : d < 0 ? (low - from[axis]) / d : delta[axis];
  }
  double done = 0;
  for (;;) {
    const int axis = next[0] <= next[1] ? (next[0] <= next[2] ? 0 : 2) : (next[1] <= next[2] ? 1 : 2);
    const bool is_last = !(next[axis] < 1); // also where a place is no number
    const double until = is_last ? 1.0 : next[axis];
    if (until > done) visit(cell, until - done);
    if (is_last) return;
    done = until;
    cell[axis] += step[axis];
    next[axis] += delta[axis];
  }
}

} // namespace shd
