// The kernels of each instruction set, and which of them the processor has.
#pragma once

#include "job.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SHD_LEVELS 3
#else
#define SHD_LEVELS 1
#endif
#if SHD_LEVELS == 3 && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define SHD_BF16 1
#else
#define SHD_BF16 0
#endif
#if SHD_BF16 && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define SHD_AMX 1
#else
#define SHD_AMX 0
#endif

namespace shd {

// What the products of the forward pass take of the block matrices, in panels of rows: numbers of float32, those of a column
// beside each other; or pairs of bfloat16, those of two columns beside each other or those of a row one after another.
enum Factors { kSingle, kPairsBeside, kPairsAlong };

struct Level {
  int width, rows; // floats of a vector, rows of a register tile
  Factors factors; // if pairs, there is the forward pass alone
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
#if SHD_BF16
extern const Level kAvx512Bf16;
#endif
#if SHD_AMX
extern const Level kAmx;
#endif

// 0: any processor, 1: AVX2 and FMA, 2: AVX-512; with products of bfloat16 3: AVX-512, 4: AMX.
inline const Level &level_of(int number) {
#if SHD_AMX
  if (number == 4) return kAmx;
#endif
#if SHD_BF16
  if (number == 3) return kAvx512Bf16;
#endif
#if SHD_LEVELS == 3
  if (number == 2) return kAvx512;
  if (number == 1) return kAvx2;
#endif
  return kGeneric;
}

} // namespace shd
