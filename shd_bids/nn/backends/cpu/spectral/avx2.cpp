// The kernels for AVX2 and FMA.

#if defined(__x86_64__) && defined(__GNUC__)
#define SHD_NAME avx2
#define SHD_WIDTH 8
#define SHD_ROWS 6
#define SHD_TARGET __attribute__((target("avx2,fma")))
#include "kernels.h"

const shd::Level shd::kAvx2 = SHD_LEVEL(avx2);
#endif
