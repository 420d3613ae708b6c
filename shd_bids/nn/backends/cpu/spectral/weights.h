// Weights of one mode, made from those of the layer on the spot, and their gradients on the way back.

// Weights of one mode for one input, in panels of columns [panel][shell, row][column]: sum_k T_k sph_k times spa_d.
// `sph`, `spa` are [term][rows of all][padded]; rows [row, row + rows) and columns [column, column + columns) are used.
// With `apart`, each shell has panels of its own, which lie so far apart.
SHD_TARGET void mode_weights(const Job &job, const float *terms, const float *sph, const float *spa, int64_t all_rows,
                             int64_t padded, int row, int rows, int column, int columns, float *out, int64_t row_offset,
                             int64_t depth, int64_t apart = 0) {
  const int order = job.basis->order;
  for (int q = 0; q < columns; q += kWidth) {
    const int panel = q / kPanel, width = columns - panel * kPanel > kWidth ? kPanel : kWidth;
    float *target = out + int64_t(panel) * kPanel * depth + row_offset * width + q % kPanel;
    for (int i = 0; i < rows; ++i) {
      const int64_t at = int64_t(row + i) * padded + column + q, step = all_rows * padded;
      Vec filter = terms[0] * SHD_LOAD(sph + at);
      for (int k = 1; k < order; ++k) filter += terms[k] * SHD_LOAD(sph + k * step + at);
      if (!job.halo) {
        SHD_STORE(target + int64_t(i) * width, filter);
        continue;
      }
      const int64_t shell = apart ? apart : int64_t(rows) * width;
      for (int d = 0; d < kShells; ++d) SHD_STORE(target + d * shell + i * width, filter * SHD_LOAD(spa + d * step + at));
    }
  }
}

// Turn the gradient of one mode's matrix, [in][shell, out], into that of the two weights and add it to the thread's sums.
SHD_TARGET void contract(const Job &job, const float *terms, const float *gradient, int input_row, int rows, float *sums_sph,
                         float *sums_spa) {
  const int order = job.basis->order, out = job.layer->out_channels, shells = job.halo ? kShells : 1;
  const int64_t padded = round_up(out, kWidth), step = job.channels * padded;
  for (int i = 0; i < rows; ++i)
    for (int o = 0; o < out; o += kWidth) {
      const int64_t at = int64_t(input_row + i) * padded + o;
      const float *g = gradient + int64_t(i) * shells * out + o;
      Vec total = Vec{};
      if (job.halo) {
        Vec filter = Vec{};
        for (int k = 0; k < order; ++k) filter += terms[k] * SHD_LOAD(job.sph + k * step + at);
        for (int d = 0; d < kShells; ++d) {
          const Vec part = SHD_LOAD(g + d * out);
          total += part * SHD_LOAD(job.spa + d * step + at);
          SHD_STORE(sums_spa + d * step + at, SHD_LOAD(sums_spa + d * step + at) + filter * part);
        }
      } else {
        total = SHD_LOAD(g);
      }
      for (int k = 0; k < order; ++k)
        SHD_STORE(sums_sph + k * step + at, SHD_LOAD(sums_sph + k * step + at) + terms[k] * total);
    }
}

// Row of the first copy of a distinct mode, and how many follow it.
inline int mode_row(const ShdBasis &basis, int64_t mode, int &copies) {
  int row = 0;
  for (int block = 0;; ++block) {
    copies = basis.copies[block];
    if (mode < basis.size[block]) return row + int(mode) * copies;
    row += basis.size[block] * copies;
    mode -= basis.size[block];
  }
}
