// Functions on the sphere as coefficients: turned so that a direction is the pole, and their slope and curvature there.
//
// A turn is Z(gamma) J Z(beta) J Z(alpha), with Z a turn about the pole, of cosines and sines of each order, and J the fixed
// turn by half a circle that takes (x, y, z) to (-x, z, y) (after Pinchon and Hoggan 2007).

#pragma once
#include "interface.h"
#include "vector.h"

namespace shd {

constexpr int kMaxDegree = 30, kMaxCoefficients = (kMaxDegree + 1) * (kMaxDegree + 2) / 2 + 16;
constexpr double kPi = 3.14159265358979323846;

inline int middle_of(int l) { return l * (l + 1) / 2; } // index of the coefficient of order 0

// f(Rz(a) v)
SHD_INLINE void turn_about_pole(int l_max, double cosine, double sine, float *c) {
  float cosines[kMaxDegree + 1], sines[kMaxDegree + 1];
  double re = 1, im = 0;
  for (int m = 0; m <= l_max; ++m) {
    cosines[m] = float(re), sines[m] = float(im);
    const double next = re * cosine - im * sine;
    im = re * sine + im * cosine, re = next;
  }
  for (int l = 2; l <= l_max; l += 2) {
    float *middle = c + middle_of(l);
    for (int m = 1; m <= l; ++m) {
      const float a = middle[m], b = middle[-m];
      middle[m] = a * cosines[m] + b * sines[m];
      middle[-m] = b * cosines[m] - a * sines[m];
    }
  }
}

// The fixed turn of every degree, of orders up to `last`.
SHD_INLINE void swap_axes(const ShdField &field, const float *__restrict c, float *__restrict out, int last) {
  const float *matrix = field.swap + 1;
  out[0] = c[0];
  for (int l = 2; l <= field.l_max; l += 2) {
    const int size = 2 * l + 1, start = middle_of(l) - l, low = std::max(0, l - last), count = size - 2 * low;
    float sums[2 * kMaxDegree + 1] = {};
    for (int k = 0; k < size; ++k) {
      const float value = c[start + k];
      const float *__restrict column = matrix + k * size + low;
      for (int m = 0; m < count; ++m) sums[m] += value * column[m];
    }
    for (int m = 0; m < count; ++m) out[start + low + m] = sums[m];
    matrix += size * size;
  }
}

// f(turn v) in place, of orders up to `last`.
SHD_INLINE void turned(const ShdField &field, const Turn &turn, float *c, int last) {
  float other[kMaxCoefficients];
  turn_about_pole(field.l_max, turn.cos_a, turn.sin_a, c);
  swap_axes(field, c, other, field.l_max);
  turn_about_pole(field.l_max, turn.cos_b, turn.sin_b, other);
  swap_axes(field, other, c, last);
  if (last == field.l_max) turn_about_pole(field.l_max, turn.cos_g, turn.sin_g, c);
}

// Value at the pole, with slope and curvature along x and y.
struct Shape {
  double value, x, y, xx, yy, xy;
};

// Near the pole Y_l0 = n (1 - l (l + 1) r^2 / 4), Y_l1 = -n sqrt(l (l + 1) / 2) r cos, Y_l2 = n sqrt((l - 1) l (l + 1) (l + 2) / 32)
// r^2 cos 2, with n = sqrt((2 l + 1) / 4 pi).
SHD_INLINE Shape shape_at_pole(int l_max, const float *c) {
  Shape s{};
  for (int l = 0; l <= l_max; l += 2) {
    const float *middle = c + middle_of(l);
    const double norm = std::sqrt((2 * l + 1) / (4 * kPi)), ll = double(l) * (l + 1);
    s.value += norm * middle[0];
    if (l == 0) continue;
    const double first = -norm * std::sqrt(ll / 2), second = norm * std::sqrt(ll * (l - 1) * (l + 2) / 8);
    s.x += first * middle[1];
    s.y += first * middle[-1];
    s.xx += -norm * ll / 2 * middle[0] + second * middle[2];
    s.yy += -norm * ll / 2 * middle[0] - second * middle[2];
    s.xy += second * middle[-2];
  }
  return s;
}

} // namespace shd
