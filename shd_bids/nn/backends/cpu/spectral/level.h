// The kernels of each instruction set, and which of them the processor has.
#pragma once

#include "job.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SHD_LEVELS 3
#else
#define SHD_LEVELS 1
#endif

namespace shd {

struct Level {
  int width, rows; // floats of a vector, rows of a register tile
  void (*analyse)(const Job &, int), (*forward)(const Job &, int), (*backward)(const Job &, int);
  void (*moments)(const RowJob &, int64_t, int64_t, double *, double *);
  void (*gradient_sums)(const RowJob &, int64_t, int64_t, double *, double *);
  void (*rectify)(const RowJob &, int64_t, int64_t), (*rectify_gradient)(const RowJob &, int64_t, int64_t);
  void (*box_sum)(const BoxJob &, int64_t, int64_t);
};

extern const Level kGeneric;
#if SHD_LEVELS == 3
extern const Level kAvx2, kAvx512;
#endif

// 0: any processor, 1: AVX2 and FMA, 2: AVX-512.
inline const Level &level_of(int number) {
#if SHD_LEVELS == 3
  if (number == 2) return kAvx512;
  if (number == 1) return kAvx2;
#endif
  return kGeneric;
}

} // namespace shd
