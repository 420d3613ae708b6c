// A whole streamline from a seed, and where it ends.

#pragma once
#include <vector>

#include "step.h"

namespace shd {

enum End : uint8_t { kCortex, kDeep, kMask, kAmplitude, kLength, kFluid, kEnds };

struct Walker {
  const ShdField &field;
  const ShdAnatomy *anatomy; // null: streamlines end where the mask or the amplitude does
  const ShdRules &rules;
  const ShdCone &cone, &sphere;

  static constexpr float kMost = 0.5f; // share from which a place is of a tissue

  bool advance(Pose &pose, Random &random) const {
    return rules.is_probabilistic ? draw_arc(field, rules, cone, random, pose) : follow_lobe(field, rules, pose);
  }

  // Direction to start with: one of the sphere's in proportion to amplitude, for lobes their maximum.
  SHD_CLONES bool start(Vec3 place, Random &random, Vec3 &direction) const {
    float c[kMaxCoefficients];
    std::vector<float> weights(sphere.padded);
    interpolate(field, Cell(field.grid, place), c);
    product(c, field.n, sphere.end, sphere.padded, weights.data());
    for (int k = 0; k < sphere.n; ++k) weights[k] = weights[k] < rules.cutoff ? 0 : weights[k];
    const int chosen = drawn(weights.data(), sphere.n, random);
    if (chosen < 0) return false;
    const float *v = sphere.direction + 3 * chosen;
    direction = (random.next() < 0.5f ? 1.0 : -1.0) * Vec3{v[0], v[1], v[2]};
    double amplitude = 0;
    return rules.is_probabilistic || (climb(field, place, direction, amplitude) && amplitude >= rules.cutoff);
  }

  bool is_outside(Vec3 place) const { return Cell(field.grid, place).nearest(field) < 0; }

  // Whether no streamline can pass a place by its tissue.
  bool is_barrier(const Tissue &tissue) const { return tissue.cortical > kMost || tissue.fluid > kMost; }

  // Whether a seed at a place can give a streamline.
  bool can_start(Vec3 place) const {
    if (is_outside(place)) return false;
    if (!anatomy) return true;
    const Tissue tissue = tissue_at(*anatomy, place);
    return !is_barrier(tissue) && tissue.deep <= kMost;
  }

  // Whether a streamline ends at the pose that it has come to, and why; the pose is added to the path where it belongs to it.
  // `entry` is where deep grey matter began on the path, 0 in other tissue.
  bool arrives(const Pose &pose, std::vector<Pose> &path, size_t &entry, End &why) const {
    if (is_outside(pose.place)) return why = kMask, true;
    if (!anatomy) return path.push_back(pose), false;
    Tissue tissue = tissue_at(*anatomy, pose.place);
    const Vec3 halfway = 0.5 * (path.back().place + pose.place);
    if (tissue.fluid <= kMost) tissue.fluid = tissue_at(*anatomy, halfway).fluid;
    if (tissue.cortical > kMost && tissue.fluid <= kMost) return path.push_back(pose), why = kCortex, true;
    if (tissue.deep > kMost && tissue.fluid <= kMost) {
      if (!entry) entry = path.size();
      return path.push_back(pose), false;
    }
    if (entry) return truncate(path, entry), why = kDeep, true;
    if (tissue.fluid > kMost) { // of a sulcus behind the cortex, or of a ventricle
      const bool is_behind = std::max(tissue.resting, tissue_at(*anatomy, path.back().place).resting) > kMost;
      return why = is_behind ? kCortex : kFluid, true;
    }
    return path.push_back(pose), false;
  }

  // End a path that leaves deep grey matter where the amplitude along it is lowest there.
  void truncate(std::vector<Pose> &path, size_t entry) const {
    size_t lowest = entry;
    double least = amplitude_of(field, path[entry]);
    for (size_t k = entry + 1; k < path.size(); ++k)
      if (const double amplitude = amplitude_of(field, path[k]); amplitude < least) lowest = k, least = amplitude;
    path.resize(lowest + 1);
  }

  // Where amplitudes fade in grey matter, that is what ends the streamline; where grey matter or the edge of the mask is at
  // most two steps ahead, it goes there straight.
  End fades(std::vector<Pose> &path, size_t entry) const {
    constexpr int kSteps = 2;
    if (entry) return kDeep;
    const Pose last = path.back();
    if (anatomy && tissue_at(*anatomy, last.place).resting > kMost) return kCortex;
    for (int k = 1; k <= kSteps; ++k) {
      const Vec3 place = last.place + k * double(rules.step) * last.direction;
      if (is_outside(place)) return kMask;
      if (!anatomy) continue;
      const Tissue tissue = tissue_at(*anatomy, place);
      if (tissue.fluid > kMost) break;
      if (tissue.cortical <= kMost && tissue.deep <= kMost) continue;
      for (int added = 1; added <= k; ++added)
        path.push_back({last.place + added * double(rules.step) * last.direction, last.direction});
      return tissue.cortical > kMost ? kCortex : kDeep;
    }
    return kAmplitude;
  }

  // Steps from a pose to an end. A streamline that loses its direction or comes into fluid goes back some steps, each time
  // further, and tries again.
  End side(Pose pose, Random &random, std::vector<Pose> &path) const {
    path.assign(1, pose);
    const size_t most = size_t(rules.max_length / rules.step) + 1;
    int rewinds = anatomy && rules.is_probabilistic ? rules.rewinds : 0;
    size_t furthest = 0, back = 0, entry = 0;
    for (;;) {
      End why = kAmplitude;
      const bool goes_on = advance(pose, random);
      const bool ends = goes_on ? arrives(pose, path, entry, why) : (why = fades(path, entry), true);
      if (path.size() > most) return kLength;
      if (!ends) continue;
      if (why <= kMask || rewinds-- <= 0) return why;
      back = path.size() > furthest ? 1 : back + 1;
      furthest = std::max(furthest, path.size());
      path.resize(path.size() > 2 * back ? path.size() - 2 * back : 1);
      pose = path.back();
    }
  }
};

} // namespace shd
