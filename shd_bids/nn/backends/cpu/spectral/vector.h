// Vectors of one instruction set, and tiles of them in registers.

constexpr int kWidth = SHD_WIDTH, kRows = SHD_ROWS;
constexpr int kPanel = 2 * kWidth; // columns of a register tile

typedef float Vec __attribute__((vector_size(SHD_WIDTH * 4), aligned(4), may_alias));
#define SHD_LOAD(p) (*reinterpret_cast<const Vec *>(p))
#define SHD_STORE(p, v) (*reinterpret_cast<Vec *>(p) = (v))
#define SHD_UNROLL _Pragma("GCC unroll 12") // else sums go through memory before and after a tile's loop

// c[M][NV * kWidth] (+)= sum, from registers.
template <int M, int NV> SHD_TARGET inline void put(const Vec (&sum)[M][NV], float *c, int64_t c_stride, int valid, bool add) {
  SHD_UNROLL
  for (int m = 0; m < M; ++m, c += c_stride) {
    if (valid >= NV * kWidth) {
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) SHD_STORE(c + v * kWidth, add ? SHD_LOAD(c + v * kWidth) + sum[m][v] : sum[m][v]);
    } else {
      float spilled[NV * kWidth];
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) SHD_STORE(spilled + v * kWidth, sum[m][v]);
      for (int n = 0; n < valid; ++n) c[n] = add ? c[n] + spilled[n] : spilled[n];
    }
  }
}
