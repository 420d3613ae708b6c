// Which kernels the processor can run, and from what source they were built.

#include "level.h"

extern "C" {

// 0: any processor, 1: AVX2 and FMA, 2: AVX-512.
int shd_best_level() {
#if SHD_LEVELS == 3
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// Digest of the source this was built from: the Python side refuses a library that is not of the source beside it.
#ifndef SHD_SOURCE
#define SHD_SOURCE ""
#endif
const char *shd_source() { return SHD_SOURCE; }

}
