// Weights of one mode, made from those of the layer on the spot.

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
