// Which kernels the processor can run, and from what source they were built.

#include "level.h"

#if SHD_BF16
#include <cpuid.h>
#endif
#if SHD_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if SHD_AMX
// Whether the processor has tiles and products of bfloat16 in them, and the system lets this process use them.
bool may_use_tiles() {
  const long ask = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & 1u << 22 && d & 1u << 24 && !syscall(SYS_arch_prctl, ask, tile_data);
}
#endif

} // namespace

extern "C" {

// The best for float32. 0: any processor, 1: AVX2 and FMA, 2: AVX-512.
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

// The best for products of bfloat16, see level_of; -1 without any.
int shd_bf16_level() {
#if SHD_BF16
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (shd_best_level() < 2 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return -1;
#if SHD_AMX
  if (may_use_tiles()) return 4;
#endif
  return 3;
#else
  return -1;
#endif
}

// Digest of the source this was built from: the Python side refuses a library that is not of the source beside it.
#ifndef SHD_SOURCE
#define SHD_SOURCE ""
#endif
const char *shd_source() { return SHD_SOURCE; }

}
