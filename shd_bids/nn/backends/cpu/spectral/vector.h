// Vectors of one instruction set.

constexpr int kWidth = SHD_WIDTH, kRows = SHD_ROWS;
constexpr int kPanel = 2 * kWidth; // columns of a register tile

typedef float Vec __attribute__((vector_size(SHD_WIDTH * 4), aligned(4), may_alias));
#define SHD_LOAD(p) (*reinterpret_cast<const Vec *>(p))
#define SHD_STORE(p, v) (*reinterpret_cast<Vec *>(p) = (v))
#define SHD_UNROLL _Pragma("GCC unroll 12") // else sums go through memory before and after a tile's loop
