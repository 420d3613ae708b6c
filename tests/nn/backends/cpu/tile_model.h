// The instructions of AMX that the kernel uses, as functions on a model of the registers: for processors without tiles.
// It refuses what the processor would: shapes beyond a tile's, and operands that do not fit.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace tile_model {

struct Tile {
  int rows, row_bytes;
  uint8_t data[16][64];
};
inline thread_local Tile tiles[8];

inline void require(bool holds) {
  if (!holds) std::abort();
}

inline void configure(const void *shapes) {
  const uint8_t *const bytes = static_cast<const uint8_t *>(shapes);
  require(bytes[0] == 1);
  for (int t = 0; t < 8; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
    require(row_bytes <= 64 && bytes[48 + t] <= 16);
    tiles[t] = {bytes[48 + t], row_bytes, {}};
  }
}

inline void load(int t, const void *from, int64_t stride) {
  require(tiles[t].rows > 0);
  std::memset(tiles[t].data, 0, sizeof tiles[t].data);
  for (int row = 0; row < tiles[t].rows; ++row)
    std::memcpy(tiles[t].data[row], static_cast<const char *>(from) + row * stride, tiles[t].row_bytes);
}

inline void store(int t, void *to, int64_t stride) {
  for (int row = 0; row < tiles[t].rows; ++row)
    std::memcpy(static_cast<char *>(to) + row * stride, tiles[t].data[row], tiles[t].row_bytes);
}

inline float number(const uint8_t *bytes) {
  uint16_t high;
  std::memcpy(&high, bytes, 2);
  const uint32_t bits = uint32_t(high) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void multiply_add(int c, int a, int b) {
  require(tiles[a].rows == tiles[c].rows && tiles[a].row_bytes == 4 * tiles[b].rows && tiles[b].row_bytes == tiles[c].row_bytes);
  for (int m = 0; m < tiles[c].rows; ++m)
    for (int n = 0; n < tiles[c].row_bytes / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles[c].data[m] + 4 * n, 4);
      for (int k = 0; k < tiles[b].rows; ++k)
        for (int half = 0; half < 4; half += 2)
          sum += number(tiles[a].data[m] + 4 * k + half) * number(tiles[b].data[k] + 4 * n + half);
      std::memcpy(tiles[c].data[m] + 4 * n, &sum, 4);
    }
}

inline void zero(int t) { std::memset(tiles[t].data, 0, sizeof tiles[t].data); }
inline void release() { std::memset(tiles, 0, sizeof tiles); }

} // namespace tile_model

#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_zero
#undef _tile_release
#define _tile_loadconfig tile_model::configure
#define _tile_loadd tile_model::load
#define _tile_stored tile_model::store
#define _tile_dpbf16ps tile_model::multiply_add
#define _tile_zero tile_model::zero
#define _tile_release tile_model::release
