// The forward pass for AMX and AVX-512 with products of bfloat16.

#include "level.h"
#if SHD_AMX
#include <immintrin.h>
#ifdef SHD_TILE_MODEL
#include SHD_TILE_MODEL // in tests: the instructions for tiles as functions, for processors without them
#define SHD_TILES
#else
#define SHD_TILES ",amx-tile,amx-bf16"
#endif

#define SHD_NAME amx
#define SHD_WIDTH 16
#define SHD_ROWS 16
#define SHD_TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16" SHD_TILES)))
#define SHD_PRODUCTS "bf16.h"
#define SHD_PAIRS "amx.h"
#include "kernels.h"

const shd::Level shd::kAmx = SHD_FORWARD_LEVEL(amx, kPairsAlong);
#endif
