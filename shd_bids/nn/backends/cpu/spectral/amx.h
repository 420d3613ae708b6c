// Products of pairs of bfloat16 in the tiles of AMX: sums of 16 rows by 32 columns, 16 pairs at a time.

static_assert(kRows == 16 && kWidth == 16, "a tile has 16 rows of 64 bytes");

// Tiles: sums of 16 columns each; rows; weights of 16 columns each. In macros, since the names go into the instructions.
#define SHD_SUM_0 0
#define SHD_SUM_1 1
#define SHD_FACTORS 2
#define SHD_LAST_FACTORS 3
#define SHD_WEIGHTS_0 4
#define SHD_WEIGHTS_1 5
#define SHD_LAST_WEIGHTS_0 6
#define SHD_LAST_WEIGHTS_1 7

thread_local int shaped = 0; // pairs of the last step, as the tiles are shaped

struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Shape the tiles; those of the last step along the sum hold so many pairs.
SHD_TARGET inline void shape_tiles(int last) {
  if (shaped == last) return;
  Shapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = uint16_t(tile == SHD_LAST_FACTORS ? 4 * last : 64);
    shapes.rows[tile] = uint8_t(tile == SHD_LAST_WEIGHTS_0 || tile == SHD_LAST_WEIGHTS_1 ? last : 16);
  }
  _tile_loadconfig(&shapes);
  shaped = last;
}

// Rows of c = rows of pairs, which lie `stride` apart, times pairs of weights. Of both, 16 rows and columns are read.
SHD_TARGET void multiply_pairs(int rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t pairs,
                               float *c, int64_t c_stride, int valid) {
  const int64_t last = (pairs - 1) % 16 + 1, a_bytes = 4 * stride, b_bytes = 4 * b_stride;
  const bool wide = valid > kWidth;
  shape_tiles(int(last));
  _tile_zero(SHD_SUM_0);
  _tile_zero(SHD_SUM_1);
  for (int64_t k = 0; k < pairs - last; k += 16, a += 16, b += 16 * b_stride) {
    _tile_loadd(SHD_FACTORS, a, a_bytes);
    _tile_loadd(SHD_WEIGHTS_0, b, b_bytes);
    _tile_dpbf16ps(SHD_SUM_0, SHD_FACTORS, SHD_WEIGHTS_0);
    if (!wide) continue;
    _tile_loadd(SHD_WEIGHTS_1, b + kWidth, b_bytes);
    _tile_dpbf16ps(SHD_SUM_1, SHD_FACTORS, SHD_WEIGHTS_1);
  }
  _tile_loadd(SHD_LAST_FACTORS, a, a_bytes);
  _tile_loadd(SHD_LAST_WEIGHTS_0, b, b_bytes);
  _tile_dpbf16ps(SHD_SUM_0, SHD_LAST_FACTORS, SHD_LAST_WEIGHTS_0);
  if (wide) {
    _tile_loadd(SHD_LAST_WEIGHTS_1, b + kWidth, b_bytes);
    _tile_dpbf16ps(SHD_SUM_1, SHD_LAST_FACTORS, SHD_LAST_WEIGHTS_1);
  }
  if (rows == kRows && valid % kWidth == 0) {
    _tile_stored(SHD_SUM_0, c, 4 * c_stride);
    if (wide) _tile_stored(SHD_SUM_1, c + kWidth, 4 * c_stride);
    return;
  }
  alignas(64) float sums[kRows][kPanel];
  _tile_stored(SHD_SUM_0, sums, sizeof sums[0]);
  _tile_stored(SHD_SUM_1, &sums[0][kWidth], sizeof sums[0]);
  for (int row = 0; row < rows; ++row) std::copy_n(sums[row], valid, c + row * c_stride);
}

// The same of a panel of a block matrix.
SHD_TARGET inline void multiply_panel(int rows, const float *a, const float *b, int64_t b_stride, int64_t pairs, float *c,
                                      int64_t c_stride, int valid) {
  multiply_pairs(rows, a, pairs, b, b_stride, pairs, c, c_stride, valid);
}

// Tiles that are in use make every change of threads dearer.
SHD_TARGET inline void end_products() {
  if (shaped) _tile_release();
  shaped = 0;
}
