// A whole streamline from a seed, and where it ends.

#pragma once
#include <vector>

#include "step.h"

namespace shd {

enum End : uint8_t { kGrey, kMask, kAmplitude, kLength, kFluid, kEnds };

struct Walker {
  const ShdField &field;
  const ShdRules &rules;
  const ShdCone &cone, &sphere;

  bool advance(Pose &pose, Random &random) const {
    return rules.is_probabilistic ? draw_arc(field, rules, cone, random, pose) : follow_lobe(field, rules, pose);
  }

  // Direction to start with: one of the sphere's in proportion to amplitude, for lobes their maximum.
  SHD_CLONES bool start(Vec3 place, Random &random, Vec3 &direction) const {
    float c[kMaxCoefficients];
    std::vector<float> weights(sphere.padded);
    interpolate(field, Cell(field, place), c);
    product(c, field.n, sphere.end, sphere.padded, weights.data());
    for (int k = 0; k < sphere.n; ++k) weights[k] = weights[k] < rules.cutoff ? 0 : weights[k];
    const int chosen = drawn(weights.data(), sphere.n, random);
    if (chosen < 0) return false;
    const float *v = sphere.direction + 3 * chosen;
    direction = (random.next() < 0.5f ? 1.0 : -1.0) * Vec3{v[0], v[1], v[2]};
    double amplitude = 0;
    return rules.is_probabilistic || (climb(field, place, direction, amplitude) && amplitude >= rules.cutoff);
  }

  // Whether a streamline that comes to a place ends there, and why; the place belongs to it only where it ends in grey matter.
  bool is_end(Vec3 place, End &why) const {
    constexpr float kNoWhite = 0.2f, kFluidShare = 0.5f;
    const Cell cell(field, place);
    if (cell.nearest(field) < 0) return why = kMask, true;
    if (!rules.uses_tissue) return false;
    const Tissue tissue = tissue_at(field, cell);
    if (tissue.fluid > kFluidShare) return why = kFluid, true;
    if (tissue.white < kNoWhite) return why = kGrey, true;
    return false;
  }

  // Where amplitudes fade beside grey matter, in it or at the edge of the mask, that is what ends the streamline.
  void fades_into(const Pose &pose, End &why) const {
    constexpr int kSteps = 2;
    constexpr float kBorder = 0.5f;
    const Tissue here = tissue_at(field, Cell(field, pose.place));
    if (rules.uses_tissue && here.white < kBorder && here.fluid < kBorder) why = kGrey;
    End ahead;
    for (int k = kSteps; k > 0; --k)
      if (is_end(pose.place + k * double(rules.step) * pose.direction, ahead) && ahead != kFluid) why = ahead;
  }

  // Steps from a pose to an end. A streamline that loses its direction or comes into fluid goes back some steps, each time
  // further, and tries again.
  End side(Pose pose, Random &random, std::vector<Pose> &path) const {
    path.assign(1, pose);
    const size_t most = size_t(rules.max_length / rules.step) + 1;
    int rewinds = rules.uses_tissue && rules.is_probabilistic ? rules.rewinds : 0;
    size_t furthest = 0, back = 0;
    for (;;) {
      End why = kAmplitude;
      bool ends = !advance(pose, random);
      if (ends) {
        fades_into(pose, why);
      } else {
        ends = is_end(pose.place, why);
        if (!ends || why == kGrey) path.push_back(pose);
      }
      if (path.size() > most) return kLength;
      if (!ends) continue;
      if (why == kGrey || why == kMask || rewinds-- <= 0) return why;
      back = path.size() > furthest ? 1 : back + 1;
      furthest = std::max(furthest, path.size());
      path.resize(path.size() > 2 * back ? path.size() - 2 * back : 1);
      pose = path.back();
    }
  }
};

} // namespace shd
