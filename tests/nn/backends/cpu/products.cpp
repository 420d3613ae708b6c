// A matrix product by the kernel's products of bfloat16, for tests: SHD_PAIRS names the file of the product itself.

#include "level.h"
#include <immintrin.h>
#ifdef SHD_TILE_MODEL
#include SHD_TILE_MODEL
#endif

#define SHD_NAME tested
#define SHD_WIDTH 16
#define SHD_TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")))
#define SHD_PRODUCTS "bf16.h"
#include "kernels.h"

// c[rows][columns] = a[rows][depth] b[depth][columns]
extern "C" void multiply_matrices(int64_t rows, int64_t depth, int columns, const float *a, const float *b, float *c) {
  using namespace shd::tested;
  std::vector<float> panels(depth * shd::round_up(columns, kPanel)), scratch(shd::kMostRows * (depth + 32));
  float *to = panels.data();
  for (int q = 0; q < columns; q += kPanel) {
    const int width = columns - q > kWidth ? kPanel : kWidth;
    for (int64_t k = 0; k < depth; ++k, to += width)
      std::copy_n(b + k * columns + q, std::min(columns - q, width), to);
  }
  prepare(panels.data(), depth, columns);
  const shd::Segment all{a, depth};
  product(0, rows, &all, 1, depth, panels.data(), columns, c, scratch.data());
  end_products();
}
