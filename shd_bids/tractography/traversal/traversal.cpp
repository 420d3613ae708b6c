// Entry points: what streamlines visit. Points are [point][3] in mm; streamline i has those from offsets[i] to offsets[i + 1].

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "walk.h"

namespace shd {
namespace {

// Lobes on a grid; rows[voxel] is its row in directions[row][lobes][3] and density[row][lobes], -1 where there is none.
struct Lobes {
  const int32_t *rows;
  const float *directions, *density;
  int32_t lobes;
  float widest; // cosine of the largest angle
};

struct Lines {
  const float *points;
  const int64_t *offsets;
  int64_t n;
};

struct Visits {
  std::vector<int64_t> counts;  // of each streamline
  std::vector<int32_t> columns; // ascending in each streamline
  std::vector<float> lengths;
};

// The lobe nearest to a direction of unit length, -1 beyond the widest angle.
int64_t nearest(const Lobes &lobes, int64_t row, const double *direction) {
  double best = lobes.widest;
  int64_t found = -1;
  for (int k = 0; k < lobes.lobes; ++k) {
    const int64_t fixel = row * lobes.lobes + k;
    if (!(lobes.density[fixel] > 0)) continue;
    const float *d = lobes.directions + 3 * fixel;
    const double along = std::abs(d[0] * direction[0] + d[1] * direction[1] + d[2] * direction[2]);
    if (along >= best) best = along, found = fixel;
  }
  return found;
}

void visit(const Grid &grid, const Lobes &lobes, const Lines &lines, int64_t first, int64_t last, Visits &out) {
  std::vector<std::pair<int32_t, double>> own;
  for (int64_t line = first; line < last; ++line) {
    own.clear();
    for (int64_t p = lines.offsets[line] + 1; p < lines.offsets[line + 1]; ++p) {
      const float *a = lines.points + 3 * (p - 1), *b = lines.points + 3 * p;
      double from[3], to[3], direction[3];
      grid.place(a, from), grid.place(b, to);
      for (int axis = 0; axis < 3; ++axis) direction[axis] = double(b[axis]) - a[axis];
      const double length = std::sqrt(direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2]);
      if (!(length > 0)) continue;
      for (double &value : direction) value /= length;
      walk(from, to, [&](const int64_t *cell, double share) {
        const int64_t voxel = grid.index(cell);
        const int64_t row = voxel < 0 ? -1 : lobes.rows[voxel];
        const int64_t fixel = row < 0 ? -1 : nearest(lobes, row, direction);
        if (fixel >= 0) own.emplace_back(int32_t(fixel), share * length);
      });
    }
    std::sort(own.begin(), own.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
    const size_t before = out.columns.size();
    for (size_t k = 0; k < own.size();) {
      double sum = 0;
      const int32_t column = own[k].first;
      for (; k < own.size() && own[k].first == column; ++k) sum += own[k].second;
      out.columns.push_back(column), out.lengths.push_back(float(sum));
    }
    out.counts.push_back(int64_t(out.columns.size() - before));
  }
}

// Call visit(voxel, length in mm) for the pieces of a streamline that lie in the grid.
template <class Visit> void pieces(const Grid &grid, const Lines &lines, int64_t line, Visit visit) {
  for (int64_t p = lines.offsets[line] + 1; p < lines.offsets[line + 1]; ++p) {
    const float *a = lines.points + 3 * (p - 1), *b = lines.points + 3 * p;
    double from[3], to[3];
    grid.place(a, from), grid.place(b, to);
    const double length = std::sqrt(std::pow(double(b[0]) - a[0], 2) + std::pow(double(b[1]) - a[1], 2) + std::pow(double(b[2]) - a[2], 2));
    walk(from, to, [&](const int64_t *cell, double share) {
      const int64_t voxel = grid.index(cell);
      if (voxel >= 0) visit(voxel, share * length);
    });
  }
}

Grid grid_of(const int32_t *shape, const double *to_voxel) { return {{shape[0], shape[1], shape[2]}, to_voxel}; }

} // namespace
} // namespace shd

using namespace shd;

extern "C" {

const char *shd_source() { return SHD_SOURCE; }

// Lengths of streamlines in the lobes that are nearest to them in direction; free the result with shd_visits_free.
void *shd_visits(const int32_t *shape, const double *to_voxel, const int32_t *rows, const float *directions, const float *density,
                 int32_t n_lobes, float widest, const float *points, const int64_t *offsets, int64_t n, int32_t threads) {
  const Grid grid = grid_of(shape, to_voxel);
  const Lobes lobes{rows, directions, density, n_lobes, widest};
  const Lines lines{points, offsets, n};
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, n));
  std::vector<Visits> results(parts);
  const auto work = [&](int64_t part) { visit(grid, lobes, lines, part * n / parts, (part + 1) * n / parts, results[part]); };
  std::vector<std::thread> others;
  for (int64_t part = 1; part < parts; ++part) others.emplace_back(work, part);
  work(0);
  for (auto &other : others) other.join();
  auto all = std::make_unique<Visits>(std::move(results[0]));
  for (int64_t part = 1; part < parts; ++part) {
    all->counts.insert(all->counts.end(), results[part].counts.begin(), results[part].counts.end());
    all->columns.insert(all->columns.end(), results[part].columns.begin(), results[part].columns.end());
    all->lengths.insert(all->lengths.end(), results[part].lengths.begin(), results[part].lengths.end());
    results[part] = Visits();
  }
  return all.release();
}

int64_t shd_visits_count(const void *visits) { return int64_t(static_cast<const Visits *>(visits)->columns.size()); }

void shd_visits_copy(const void *visits, int64_t *counts, int32_t *columns, float *lengths) {
  const Visits &v = *static_cast<const Visits *>(visits);
  std::copy(v.counts.begin(), v.counts.end(), counts);
  std::copy(v.columns.begin(), v.columns.end(), columns);
  std::copy(v.lengths.begin(), v.lengths.end(), lengths);
}

void shd_visits_free(void *visits) { delete static_cast<Visits *>(visits); }

// Add the weight of each streamline, one where there are none, to the voxels that it visits, once a voxel. last[voxel] must be -1.
void shd_density(const int32_t *shape, const double *to_voxel, const float *points, const int64_t *offsets, int64_t n,
                 const float *weights, int64_t *last, double *density) {
  const Grid grid = grid_of(shape, to_voxel);
  const Lines lines{points, offsets, n};
  for (int64_t line = 0; line < n; ++line) {
    const auto mark = [&](int64_t voxel) {
      if (last[voxel] == line) return;
      last[voxel] = line;
      density[voxel] += weights ? weights[line] : 1.0;
    };
    for (int64_t p = offsets[line]; p < offsets[line + 1]; ++p) {
      double place[3];
      grid.place(points + 3 * p, place);
      const int64_t cell[3] = {int64_t(std::floor(place[0])), int64_t(std::floor(place[1])), int64_t(std::floor(place[2]))};
      const int64_t voxel = grid.index(cell);
      if (voxel >= 0) mark(voxel);
    }
    pieces(grid, lines, line, [&](int64_t voxel, double) { mark(voxel); });
  }
}

// Mean of a volume along each streamline, by the length in each voxel; NaN for one that lies outside.
void shd_means(const int32_t *shape, const double *to_voxel, const float *volume, const float *points, const int64_t *offsets,
               int64_t n, float *means) {
  const Grid grid = grid_of(shape, to_voxel);
  const Lines lines{points, offsets, n};
  for (int64_t line = 0; line < n; ++line) {
    double sum = 0, total = 0;
    pieces(grid, lines, line, [&](int64_t voxel, double length) { sum += length * volume[voxel], total += length; });
    means[line] = float(sum / total);
  }
}
}
