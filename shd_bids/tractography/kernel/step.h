// One step of a streamline: where it may go from a place and a direction.

#pragma once
#include <vector>

#include "field.h"
#include "random.h"

namespace shd {

struct Pose {
  Vec3 place, direction;
};

// Sum over coefficients of value times row of a table, for every column.
SHD_INLINE void product(const float *__restrict c, int n, const float *__restrict table, int padded, float *__restrict out) {
  for (int k = 0; k < padded; ++k) out[k] = 0;
  for (int i = 0; i < n; ++i) {
    const float value = c[i];
    const float *__restrict row = table + int64_t(i) * padded;
    for (int k = 0; k < padded; ++k) out[k] += value * row[k];
  }
}

// Draw an index in proportion to weights; -1 where all are zero.
SHD_INLINE int drawn(const float *weights, int n, Random &random) {
  float total = 0;
  for (int k = 0; k < n; ++k) total += weights[k];
  const float target = random.next() * total;
  if (!(total > 0)) return -1;
  float sum = 0;
  int last = -1;
  for (int k = 0; k < n; ++k) {
    if (!(weights[k] > 0)) continue;
    last = k, sum += weights[k];
    if (sum > target) break;
  }
  return last;
}

// Amplitudes along the arcs of a step: halfway, and at the end. `scratch` has 3 columns of the padded width.
SHD_INLINE void along_arcs(const ShdField &field, const ShdRules &rules, const ShdCone &cone, const Pose &pose, const Turn &turn,
                           float *scratch) {
  float *halfway = scratch, *end = scratch + cone.padded, *part = end + cone.padded, c[kMaxCoefficients];
  interpolate(field, Cell(field.grid, pose.place + 0.5 * rules.step * pose.direction), c);
  turned(field, turn, c, field.l_max);
  product(c, field.n, cone.halfway, cone.padded, halfway);
  for (int k = 0; k < cone.padded; ++k) end[k] = 0;
  const Vec3 middle = pose.place + rules.step * pose.direction;
  for (int corner = 0; corner < 3; ++corner) {
    const double azimuth = 2 * kPi * corner / 3;
    const Vec3 place = middle + cone.radius * turn({std::cos(azimuth), std::sin(azimuth), 0});
    interpolate(field, Cell(field.grid, place), c);
    turned(field, turn, c, field.l_max);
    product(c, field.n, cone.end, cone.padded, part);
    const float *__restrict share = cone.corners + corner * cone.padded;
    for (int k = 0; k < cone.padded; ++k) end[k] += share[k] * part[k];
  }
}

// Draw an arc of a circle in proportion to the product of the amplitudes at its quarters (second order: Tournier, Calamante and
// Connelly 2010), those of the odd ones taken as that of the next. Arcs that fall below the cutoff are left out. False where none
// is left.
SHD_CLONES inline bool draw_arc(const ShdField &field, const ShdRules &rules, const ShdCone &cone, Random &random, Pose &pose) {
  std::vector<float> scratch(4 * size_t(cone.padded));
  const float *halfway = scratch.data(), *end = halfway + cone.padded;
  float *weights = scratch.data() + 3 * cone.padded;
  const Turn turn = Turn::to(pose.direction, 2 * kPi * random.next());
  along_arcs(field, rules, cone, pose, turn, scratch.data());
  for (int k = 0; k < cone.n; ++k) {
    const bool is_open = std::min(halfway[k], end[k]) >= rules.cutoff;
    const float along = halfway[k] * end[k];
    weights[k] = is_open ? cone.area[k] * along * along : 0;
  }
  const int chosen = drawn(weights, cone.n, random);
  if (chosen < 0) return false;
  const float *v = cone.direction + 3 * chosen;
  const Vec3 direction = turn({v[0], v[1], v[2]});
  const Vec3 chord = unit(pose.direction + direction);
  const double half = std::acos(std::min(1.0, std::max(-1.0, dot(pose.direction, direction)))) / 2;
  const double length = half > 1e-6 ? rules.step * std::sin(half) / half : rules.step; // of the chord of an arc of that length
  pose = {pose.place + length * chord, direction};
  return true;
}

// Amplitude at a place in a direction.
inline double amplitude_of(const ShdField &field, const Pose &pose) {
  float c[kMaxCoefficients];
  interpolate(field, Cell(field.grid, pose.place), c);
  turned(field, Turn::to(pose.direction, 0), c, 2);
  return shape_at_pole(field.l_max, c).value;
}

// Nearest maximum of the function at a place, by Newton's method on the sphere from a direction, and its amplitude.
SHD_CLONES inline bool climb(const ShdField &field, Vec3 place, Vec3 &direction, double &amplitude) {
  constexpr int kMost = 30;
  constexpr double kLongest = 0.15, kEnough = 2e-4; // radians
  float at_place[kMaxCoefficients], c[kMaxCoefficients];
  interpolate(field, Cell(field.grid, place), at_place);
  for (int count = 0; count < kMost; ++count) {
    std::copy(at_place, at_place + field.n, c);
    const Turn turn = Turn::to(direction, 0);
    turned(field, turn, c, 2);
    const Shape s = shape_at_pole(field.l_max, c);
    const double determinant = s.xx * s.yy - s.xy * s.xy, slope = std::hypot(s.x, s.y);
    double x = s.x / std::max(slope, 1e-30) * kLongest, y = s.y / std::max(slope, 1e-30) * kLongest;
    if (determinant > 0 && s.xx < 0) x = -(s.yy * s.x - s.xy * s.y) / determinant, y = -(s.xx * s.y - s.xy * s.x) / determinant;
    const double length = std::hypot(x, y);
    const double shrink = length > kLongest ? kLongest / length : 1;
    direction = unit(turn({shrink * x, shrink * y, 1}));
    amplitude = s.value;
    if (length < kEnough) return true;
  }
  return false;
}

// Follow the lobe: the direction of the nearest maximum halfway of a step along the one here (midpoint rule). False where the
// maximum is low or turned too far.
inline bool follow_lobe(const ShdField &field, const ShdRules &rules, Pose &pose) {
  Vec3 direction = pose.direction;
  double amplitude = 0;
  if (!climb(field, pose.place + 0.5 * rules.step * direction, direction, amplitude)) return false;
  if (amplitude < rules.cutoff || dot(direction, pose.direction) < std::cos(rules.max_angle)) return false;
  const Vec3 place = pose.place + rules.step * direction;
  Vec3 next = direction;
  if (!climb(field, place, next, amplitude)) return false;
  if (amplitude < rules.cutoff || dot(next, pose.direction) < std::cos(rules.max_angle)) return false;
  pose = {place, next};
  return true;
}

} // namespace shd
