// Random numbers as a function of a key and a counter (SplitMix64: Steele, Lea and Flood 2014).

#pragma once
#include <cstdint>

namespace shd {

inline uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Draws of one seed; those of two seeds are independent whatever else is drawn.
class Random {
public:
  Random(uint64_t seed, uint64_t number) : key_(mixed(mixed(seed + kStep) + (number + 1) * kStep)) {}
  // Uniform in [0, 1).
  float next() { return float(mixed(key_ += kStep) >> 40) * 0x1p-24f; }

private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  uint64_t key_;
};

} // namespace shd
