// Points and directions.

#pragma once
#include <algorithm>
#include <cmath>

// A function is compiled for several instruction sets, of which the loader picks one.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define SHD_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define SHD_CLONES
#endif
#define SHD_INLINE inline __attribute__((always_inline)) // into every clone of its caller

namespace shd {

struct Vec3 {
  double x, y, z;
};
SHD_INLINE Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
SHD_INLINE Vec3 operator-(Vec3 a) { return {-a.x, -a.y, -a.z}; }
SHD_INLINE Vec3 operator*(double s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
SHD_INLINE double dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
SHD_INLINE Vec3 unit(Vec3 a) { return 1 / std::sqrt(std::max(dot(a, a), 1e-300)) * a; }

// Turn by Rz(alpha) Ry(beta) Rz(gamma), which takes the pole to (sin b cos a, sin b sin a, cos b).
struct Turn {
  double cos_a, sin_a, cos_b, sin_b, cos_g, sin_g;

  static SHD_INLINE Turn to(Vec3 pole, double gamma) {
    const double across = std::hypot(pole.x, pole.y);
    const bool is_axis = across < 1e-12;
    return {is_axis ? 1 : pole.x / across, is_axis ? 0 : pole.y / across, pole.z, across, std::cos(gamma), std::sin(gamma)};
  }
  SHD_INLINE Vec3 operator()(Vec3 v) const {
    const Vec3 g{cos_g * v.x - sin_g * v.y, sin_g * v.x + cos_g * v.y, v.z};
    const Vec3 b{cos_b * g.x + sin_b * g.z, g.y, cos_b * g.z - sin_b * g.x};
    return {cos_a * b.x - sin_a * b.y, sin_a * b.x + cos_a * b.y, b.z};
  }
};

} // namespace shd
