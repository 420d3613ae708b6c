// The forward pass for AVX-512 with products of bfloat16.

#include "level.h"
#if SHD_BF16
#include <immintrin.h>

#define SHD_NAME avx512_bf16
#define SHD_WIDTH 16
#define SHD_ROWS 12
#define SHD_TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")))
#define SHD_PRODUCTS "bf16.h"
#define SHD_PAIRS "pairs.h"
#include "kernels.h"

const shd::Level shd::kAvx512Bf16 = SHD_FORWARD_LEVEL(avx512_bf16, kPairsBeside);
#endif
