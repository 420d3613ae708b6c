// Products of pairs of bfloat16 in vectors.

// c = a b in registers: pairs a[m row + k step] times b[k][column].
template <int M, int NV>
SHD_TARGET inline void pair_tile(const float *a, int64_t row, int64_t step, const float *b, int64_t b_stride, int64_t pairs,
                                 float *c, int64_t c_stride, int valid) {
  __m512 sum[M][NV]; // no array that `put` is given: that would lie in memory
  SHD_UNROLL
  for (int m = 0; m < M; ++m) {
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_setzero_ps();
  }
  const float *rows[(M + 2) / 3]; // three rows from each: more pointers than that do not fit the registers
  for (int m = 0; m < M; m += 3) rows[m / 3] = a + m * row;
  for (int64_t k = 0; k < pairs * step; k += step, b += b_stride) {
    Vec w[NV];
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = SHD_LOAD(b + v * kWidth);
    SHD_UNROLL
    for (int m = 0; m < M; ++m) {
      const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_ps(rows[m / 3][m % 3 * row + k]));
      SHD_UNROLL
      for (int v = 0; v < NV; ++v)
        sum[m][v] = _mm512_dpbf16_ps(sum[m][v], factor, reinterpret_cast<__m512bh>(w[v]));
    }
  }
  Vec total[M][NV];
  SHD_UNROLL
  for (int m = 0; m < M; ++m) {
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) total[m][v] = Vec(sum[m][v]);
  }
  put<M, NV>(total, c, c_stride, valid, false);
}

template <int M, bool kSide>
SHD_TARGET void pair_rows(int rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t pairs, float *c,
                          int64_t c_stride, int valid) {
  const int64_t row = kSide ? 1 : stride, step = kSide ? stride : 1;
  if (rows == M) {
    if (valid > kWidth)
      pair_tile<M, 2>(a, row, step, b, b_stride, pairs, c, c_stride, valid);
    else
      pair_tile<M, 1>(a, row, step, b, b_stride, pairs, c, c_stride, valid);
  } else if constexpr (M > 1) {
    pair_rows<M - 1, kSide>(rows, a, stride, b, b_stride, pairs, c, c_stride, valid);
  }
}

// Rows of c = rows of pairs, which lie `stride` apart, times pairs of weights.
SHD_TARGET inline void multiply_pairs(int rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t pairs,
                                      float *c, int64_t c_stride, int valid) {
  pair_rows<kRows, false>(rows, a, stride, b, b_stride, pairs, c, c_stride, valid);
}

// The same of a panel of a block matrix, whose rows lie side by side.
SHD_TARGET inline void multiply_panel(int rows, const float *a, const float *b, int64_t b_stride, int64_t pairs, float *c,
                                      int64_t c_stride, int valid) {
  pair_rows<kRows, true>(rows, a, kRows, b, b_stride, pairs, c, c_stride, valid);
}

inline void end_products() {}
