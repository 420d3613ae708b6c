// The products of the forward pass in float32, and the rows that they take.

constexpr bool kKeepsCentre = false;

// Where the sums of one input go: those of a voxel lie `step` apart from the next one's.
struct Sums {
  float *shell[kShells];
  int64_t step;
};
SHD_TARGET inline void keep(Vec sum, float *to) { SHD_STORE(to, sum); }
inline void keep(float sum, float *to) { *to = sum; }

// The segments of one input (or gradient) of F channels for the planes of a block from `from` on.
SHD_TARGET int segments(const Job &job, const float *ring, int F, const Block &block, int64_t from, const Sums &sums,
                        Segment *out) {
  const int64_t line = job.layer->shape.z * F;
  out[0] = {ring + (from % job.ring) * job.plane_voxels * F + block.low * line, F};
  if (!job.halo) return 1;
  for (int d = 1; d < kShells; ++d)
    out[d] = {sums.shell[d] + (from - block.begin) * (block.high - block.low) * line, F};
  return kShells;
}

// Make the weights of a mode what the product takes, in place.
inline void prepare(float *, int64_t, int) {}

inline void end_products() {}

// Rows [begin, end) of c = those of the segments times prepared weights.
SHD_TARGET inline void product(int64_t begin, int64_t end, const Segment *segments, int count, int64_t depth,
                               const float *panels, int columns, float *c, float *) {
  multiply(begin, end, segments, count, depth, panels, columns, c);
}

// Each block of rows of y = its matrix times the same rows of x; rows of one copy lie `copies` apart.
SHD_TARGET void blocks(const ShdBasis &basis, const float *panels, const float *x, float *y, int64_t y_stride, int columns) {
  int first = 0;
  for (int block = 0; block < basis.blocks; ++block) {
    const int n = basis.size[block], copies = basis.copies[block];
    for (int row = 0; row < n; row += kRows, panels += int64_t(kRows) * n)
      for (int copy = 0; copy < copies; ++copy)
        for (int q = 0; q < columns; q += kPanel)
          side_rows<kRows>(std::min(kRows, n - row), panels, kRows, x + int64_t(first + copy) * kTile + q,
                                 int64_t(copies) * kTile, n, y + int64_t(first + row * copies + copy) * y_stride + q,
                                 copies * y_stride, std::min(kPanel, columns - q), false);
    first += n * copies;
  }
}

// The rows of a block that the product takes: the sums of each input and shell in an array of their own.
class Rows {
public:
  Rows(const Job &job, float *&free) : job_(job), sums_(job.fine), parts_(kShells * job.fine) {
    for (int j = 0; j < job.fine; ++j) {
      sums_[j].step = job.layer->in_channels[j];
      for (int d = 1; d < kShells; ++d) sums_[j].shell[d] = take(free, sum_size(job, job.layer->in_channels[j]));
    }
  }
  const Sums &sums(int input) const { return sums_[input]; }
  // Go to the planes of a block from `from` on, of one mode.
  void go_to(const Block &block, int64_t from, int64_t mode) {
    const float *ring = job_.expansion;
    count_ = 0;
    for (int j = 0; j < job_.fine; ++j) {
      const int64_t F = job_.layer->in_channels[j], stride = job_.ring * job_.plane_voxels * F;
      count_ += segments(job_, ring + mode * stride, int(F), block, from, sums_[j], &parts_[count_]);
      ring += job_.basis->vertices * stride;
    }
  }
  SHD_TARGET void multiply_by(const float *weights, int64_t depth, int64_t begin, int64_t end, int columns, float *c) {
    multiply(begin, end, parts_.data(), count_, depth, weights, columns, c);
  }

private:
  const Job &job_;
  std::vector<Sums> sums_;
  std::vector<Segment> parts_;
  int count_ = 0;
};
