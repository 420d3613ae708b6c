// The kernels for AVX-512.

#if defined(__x86_64__) && defined(__GNUC__)
#define SHD_NAME avx512
#define SHD_WIDTH 16
#define SHD_ROWS 12
#define SHD_TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")))
#include "kernels.h"

const shd::Level shd::kAvx512 = SHD_LEVEL(avx512);
#endif
