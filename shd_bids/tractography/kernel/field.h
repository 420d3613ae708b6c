// Functions on the sphere and tissues between voxels, by trilinear interpolation.

#pragma once
#include "sphere.h"

namespace shd {

// Place in voxels of a grid, split into the voxel below and the share on the way to the next.
struct Cell {
  int low[3];
  float share[3];
  bool is_inside; // all eight corners lie in the grid

  SHD_INLINE Cell(const ShdGrid &grid, Vec3 p) : is_inside(true) {
    for (int axis = 0; axis < 3; ++axis) {
      const double *row = grid.to_voxel + 4 * axis;
      const double at = row[0] * p.x + row[1] * p.y + row[2] * p.z + row[3], floor = std::floor(at);
      low[axis] = int(floor), share[axis] = float(at - floor);
      is_inside = is_inside && floor >= 0 && floor < grid.shape[axis] - 1;
    }
  }
  SHD_INLINE int64_t corner(const ShdGrid &grid, int number) const {
    return (int64_t(low[0] + (number >> 2)) * grid.shape[1] + low[1] + ((number >> 1) & 1)) * grid.shape[2] + low[2] +
           (number & 1);
  }
  SHD_INLINE float weight(int number) const {
    return (number & 4 ? share[0] : 1 - share[0]) * (number & 2 ? share[1] : 1 - share[1]) *
           (number & 1 ? share[2] : 1 - share[2]);
  }
  int nearest_corner() const { return (share[0] >= 0.5f) << 2 | (share[1] >= 0.5f) << 1 | (share[2] >= 0.5f); }
  // Row of the nearest voxel, -1 where there is none.
  int32_t nearest(const ShdField &field) const { return is_inside ? field.rows[corner(field.grid, nearest_corner())] : -1; }
};

// Coefficients at a place; voxels without a function count as zero.
SHD_INLINE void interpolate(const ShdField &field, const Cell &cell, float *__restrict out) {
  for (int i = 0; i < field.n; ++i) out[i] = 0;
  if (!cell.is_inside) return;
  for (int number = 0; number < 8; ++number) {
    const int32_t row = field.rows[cell.corner(field.grid, number)];
    const float weight = cell.weight(number);
    if (row < 0 || weight == 0) continue;
    const float *__restrict c = field.coefficients + int64_t(row) * field.stride;
    for (int i = 0; i < field.n; ++i) out[i] += weight * c[i];
  }
}

// Shares of the tissues at a place; fluid is at least that of the nearest voxel, so that no streamline slips through the rim of
// a voxel that is mostly fluid.
struct Tissue {
  float cortical, deep, fluid, resting;
};

inline Tissue tissue_at(const ShdAnatomy &anatomy, Vec3 place) {
  const Cell cell(anatomy.grid, place);
  float sums[4] = {};
  if (!cell.is_inside) return {};
  for (int number = 0; number < 8; ++number) {
    const float weight = cell.weight(number), *shares = anatomy.shares + 4 * cell.corner(anatomy.grid, number);
    for (int k = 0; k < 4; ++k) sums[k] += weight * shares[k];
  }
  const float nearest = anatomy.shares[4 * cell.corner(anatomy.grid, cell.nearest_corner()) + 2];
  return {sums[0], sums[1], std::max(sums[2], nearest), sums[3]};
}

} // namespace shd
