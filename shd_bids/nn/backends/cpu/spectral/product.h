// Matrix products in register tiles.

// c = a b in registers, where the rows of `a` lie side by side: a[k][m].
template <int M, int NV>
SHD_TARGET void side_tile(const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t depth, float *c,
                          int64_t c_stride, int valid, bool add) {
  Vec sum[M][NV];
  SHD_UNROLL
  for (int m = 0; m < M; ++m) {
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) sum[m][v] = Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, a += stride, b += b_stride) {
    Vec w[NV];
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = SHD_LOAD(b + v * kWidth);
    SHD_UNROLL
    for (int m = 0; m < M; ++m) {
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) sum[m][v] += a[m] * w[v];
    }
  }
  put<M, NV>(sum, c, c_stride, valid, add);
}

// c = a b in registers, where each row of `a` is cut into segments that lie in arrays of their own.
template <int M, int NV>
SHD_TARGET void segment_tile(const Segment *segments, int count, int64_t row, const float *b, float *c, int64_t c_stride,
                             int valid) {
  Vec sum[M][NV];
  SHD_UNROLL
  for (int m = 0; m < M; ++m) {
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) sum[m][v] = Vec{};
  }
  for (int s = 0; s < count; ++s) {
    const int64_t length = segments[s].length;
    const float *rows[(M + 2) / 3]; // three rows from each: more pointers than that do not fit the registers
    for (int m = 0; m < M; m += 3) rows[m / 3] = segments[s].data + (row + m) * length;
    for (int64_t k = 0; k < length; ++k, b += NV * kWidth) {
      Vec w[NV];
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = SHD_LOAD(b + v * kWidth);
      SHD_UNROLL
      for (int m = 0; m < M; ++m) {
        const float factor = rows[m / 3][m % 3 * length + k];
        SHD_UNROLL
        for (int v = 0; v < NV; ++v) sum[m][v] += factor * w[v];
      }
    }
  }
  put<M, NV>(sum, c, c_stride, valid, false);
}

template <int M>
SHD_TARGET void side_rows(int rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t depth, float *c,
                          int64_t c_stride, int valid, bool add) {
  if (rows == M) {
    if (valid > kWidth)
      side_tile<M, 2>(a, stride, b, b_stride, depth, c, c_stride, valid, add);
    else
      side_tile<M, 1>(a, stride, b, b_stride, depth, c, c_stride, valid, add);
  } else if constexpr (M > 1) {
    side_rows<M - 1>(rows, a, stride, b, b_stride, depth, c, c_stride, valid, add);
  }
}

template <int M>
SHD_TARGET void segment_rows(int rows, const Segment *segments, int count, int64_t row, const float *b, float *c,
                             int64_t c_stride, int valid) {
  if (rows == M) {
    if (valid > kWidth)
      segment_tile<M, 2>(segments, count, row, b, c, c_stride, valid);
    else
      segment_tile<M, 1>(segments, count, row, b, c, c_stride, valid);
  } else if constexpr (M > 1) {
    segment_rows<M - 1>(rows, segments, count, row, b, c, c_stride, valid);
  }
}

// Rows are cut into register tiles of nearly equal height.
SHD_TARGET void side_product(int64_t rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t depth,
                             float *c, int64_t c_stride, int valid, bool add) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    side_rows<kRows>(int(last - first), a + first, stride, b, b_stride, depth, c + first * c_stride, c_stride, valid, add);
  }
}

// Rows [begin, end) of c[][columns] = those of the segments times weights in panels of columns.
SHD_TARGET void multiply(int64_t begin, int64_t end, const Segment *segments, int count, int64_t depth, const float *panels,
                         int columns, float *c) {
  const int64_t rows = end - begin, tiles = (rows + kRows - 1) / kRows;
  for (int q = 0; q < columns; q += kPanel)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = begin + rows * t / tiles, last = begin + rows * (t + 1) / tiles;
      segment_rows<kRows>(int(last - first), segments, count, first, panels + q * depth, c + first * columns + q, columns,
                          std::min(kPanel, columns - q));
    }
}
