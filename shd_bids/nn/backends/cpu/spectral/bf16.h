// The products of the forward pass in bfloat16, summed in float32.
//
// Numbers that are multiplied come in pairs along the sum, rounded to nearest, the first in the lower half of 32 bits. That is
// what the instructions multiply and add at once, in vectors as in tiles. SHD_PAIRS is the file of the product itself.

// The pairs of two vectors, in place of the first.
SHD_TARGET inline Vec paired(Vec first, Vec second) {
  const __m512i order =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
                       1, 16, 0);
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
  return Vec(_mm512_permutexvar_epi16(order, both));
}

#include SHD_PAIRS

// Make the weights of a mode, in panels of columns, pairs of rows, in place.
SHD_TARGET void prepare(float *panels, int64_t depth, int columns) {
  for (int q = 0; q < columns; q += kPanel) {
    const int width = columns - q > kWidth ? kPanel : kWidth;
    float *const panel = panels + q * depth;
    for (int64_t k = 0; k < depth; k += 2)
      for (int v = 0; v < width; v += kWidth) {
        const float *const first = panel + k * width + v;
        SHD_STORE(panel + k / 2 * width + v, paired(SHD_LOAD(first), k + 1 < depth ? SHD_LOAD(first + width) : Vec{}));
      }
  }
}

constexpr bool kKeepsCentre = true;

// Where the sums of one input go: those of a voxel lie `step` apart from the next one's, all shells of all inputs in one row.
struct Sums {
  uint16_t *shell[kShells];
  int64_t step;
};
SHD_TARGET inline void keep(Vec sum, uint16_t *to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(__m512(sum))));
}
SHD_TARGET inline void keep(float sum, uint16_t *to) {
  *to = uint16_t(_mm_extract_epi16(reinterpret_cast<__m128i>(_mm_cvtneps_pbh(_mm_set_ss(sum))), 0));
}

// Rows of c = rounded rows, which lie `stride` pairs apart, times prepared weights.
SHD_TARGET void multiply_rounded(int64_t rows, const float *a, int64_t stride, int64_t depth, const float *panels, int columns,
                                 float *c) {
  const int64_t tiles = (rows + kRows - 1) / kRows, pairs = (depth + 1) / 2;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    for (int q = 0; q < columns; q += kPanel)
      multiply_pairs(int(last - first), a + first * stride, stride, panels + q * depth, columns - q > kWidth ? kPanel : kWidth,
                     pairs, c + first * columns + q, columns, std::min(kPanel, columns - q));
  }
}

// Round a row of so many numbers. What is written beyond its end is slack.
SHD_TARGET void round_row(const float *from, int64_t length, uint16_t *to) {
  int64_t k = 0;
  for (; k + kWidth <= length; k += kWidth) keep(SHD_LOAD(from + k), to + k);
  if (k < length) keep(Vec(_mm512_maskz_loadu_ps(__mmask16((1 << (length - k)) - 1), from + k)), to + k);
}

// Rows [begin, end) of c = those of the segments times prepared weights; few of them are rounded at once.
SHD_TARGET void product(int64_t begin, int64_t end, const Segment *segments, int count, int64_t depth, const float *panels,
                        int columns, float *c, float *scratch) {
  const int64_t stride = (depth + 1) / 2;
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, end - row);
    for (int64_t r = 0; r < rows; ++r) {
      uint16_t *to = reinterpret_cast<uint16_t *>(scratch + r * stride);
      for (int s = 0; s < count; to += segments[s++].length)
        round_row(segments[s].data + (row + r) * segments[s].length, segments[s].length, to);
      if (depth % 2) *to = 0; // the last pair's second number
    }
    multiply_rounded(rows, scratch, stride, depth, panels, columns, c + row * columns);
  }
}

// Each block of rows of y = its matrix times the same rows of x, which are used up; rows of one copy lie `copies` apart.
SHD_TARGET void blocks(const ShdBasis &basis, const float *panels, float *x, float *y, int64_t y_stride, int columns) {
  for (int block = 0; block < basis.blocks; ++block) {
    const int n = basis.size[block], copies = basis.copies[block], pairs = (n + 1) / 2;
    const int64_t next = int64_t(copies) * kTile;
    for (int row = 0; row < n; row += 2)
      for (float *at = x + row * next; at < x + (row + 1) * next; at += kWidth)
        SHD_STORE(at, paired(SHD_LOAD(at), row + 1 < n ? SHD_LOAD(at + next) : Vec{}));
    for (int row = 0; row < n; row += kRows, panels += int64_t(kRows) * pairs)
      for (int copy = 0; copy < copies; ++copy)
        for (int q = 0; q < columns; q += kPanel)
          multiply_panel(std::min(kRows, n - row), panels, x + copy * kTile + q, 2 * next, pairs,
                         y + int64_t(row * copies + copy) * y_stride + q, copies * y_stride, std::min(kPanel, columns - q));
    x += n * next;
    y += n * copies * y_stride;
  }
}

// The rows of a block that the product takes: shell sums, which are rounded as they come, or without them what the ring holds.
class Rows {
public:
  Rows(const Job &job, float *&free)
      : job_(job), sums_(job.fine), parts_(job.fine), stride_(row_pairs(job)), rows_(take(free, rows_size(job))) {
    uint16_t *place = reinterpret_cast<uint16_t *>(rows_);
    for (int j = 0; j < job.fine; ++j) {
      sums_[j].step = 2 * stride_;
      for (int d = 0; d < kShells; ++d, place += job.layer->in_channels[j]) sums_[j].shell[d] = place;
    }
  }
  const Sums &sums(int input) const { return sums_[input]; }
  // Go to the planes of a block from `from` on, of one mode.
  void go_to(const Block &block, int64_t from, int64_t mode) {
    here_ = rows_ + (from - block.begin) * (block.high - block.low) * job_.layer->shape.z * stride_;
    const float *ring = job_.expansion;
    for (int j = 0; j < job_.fine; ++j) {
      const int64_t F = job_.layer->in_channels[j], plane = job_.plane_voxels * F, stride = job_.ring * plane;
      parts_[j] = {ring + mode * stride + from % job_.ring * plane + block.low * job_.layer->shape.z * F, F};
      ring += job_.basis->vertices * stride;
    }
  }
  SHD_TARGET void multiply_by(const float *weights, int64_t depth, int64_t begin, int64_t end, int columns, float *c) {
    if (job_.halo)
      multiply_rounded(end - begin, here_ + begin * stride_, stride_, depth, weights, columns, c + begin * columns);
    else
      product(begin, end, parts_.data(), job_.fine, depth, weights, columns, c, rows_);
  }

private:
  const Job &job_;
  std::vector<Sums> sums_;
  std::vector<Segment> parts_;
  const int64_t stride_;
  float *const rows_, *here_ = nullptr;
};
