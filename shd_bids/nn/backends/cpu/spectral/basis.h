// Changes of basis between vertices and modes, columns of one tile at a time.

// y[row][kTile] = sum of sign * x[index][kTile]: the sparse factor of the basis, entries +-1.
SHD_TARGET void butterflies(int rows, const int32_t *start, const int32_t *index, const float *sign, const float *x, float *y) {
  for (int row = 0; row < rows; ++row)
    for (int q = 0; q < kTile; q += kPanel) {
      Vec low = Vec{}, high = Vec{};
      for (int e = start[row]; e < start[row + 1]; ++e) {
        const float *p = x + int64_t(index[e]) * kTile + q;
        low += sign[e] * SHD_LOAD(p);
        high += sign[e] * SHD_LOAD(p + kWidth);
      }
      SHD_STORE(y + int64_t(row) * kTile + q, low);
      SHD_STORE(y + int64_t(row) * kTile + q + kWidth, high);
    }
}

// Rows of x, or where `parent` names others those.
SHD_TARGET void gather(int rows, const float *first, const int64_t *parent, int64_t stride, int columns, float *tile) {
  for (int row = 0; row < rows; ++row, tile += kTile) {
    const float *x = first + (parent ? parent[row] : row) * stride;
    if (columns == kTile) {
      for (int q = 0; q < kTile; q += kWidth) SHD_STORE(tile + q, SHD_LOAD(x + q));
    } else {
      for (int q = 0; q < kTile; ++q) tile[q] = q < columns ? x[q] : 0.0f;
    }
  }
}

// Put zeros into the columns of a tile whose voxel is not marked; it begins at `column` of all columns, of F channels.
SHD_TARGET void blank(int rows, const uint8_t *marks, int64_t column, int columns, int F, float *tile) {
  for (int q = 0, next; q < columns; q = next) {
    const int64_t voxel = (column + q) / F;
    next = int(std::min<int64_t>((voxel + 1) * F - column, columns));
    if (marks[voxel]) continue;
    for (int row = 0; row < rows; ++row) std::fill(tile + row * kTile + q, tile + row * kTile + next, 0.0f);
  }
}

// Marks: of the voxels of x that are not zero, counted from its columns' beginning, of which these start at `column`.
SHD_TARGET void to_modes(const Job &job, const float *x, const int64_t *parent, int64_t x_stride, float *y, int64_t y_stride,
                         int columns, float *scratch, const uint8_t *marks = nullptr, int64_t column = 0, int F = 1) {
  const ShdBasis &basis = *job.basis;
  float *adapted = scratch + int64_t(basis.vertices) * kTile;
  gather(basis.vertices, x, parent, x_stride, columns, scratch);
  if (marks) blank(basis.vertices, marks, column, columns, F, scratch);
  butterflies(basis.vertices, basis.analyse_start, basis.analyse_index, basis.analyse_sign, scratch, adapted);
  blocks(basis, job.analyse_panels, adapted, y, y_stride, columns);
}

// In place; then bias (one for each of `channels`, starting at that of the first column) and rectification.
SHD_TARGET void to_vertices(const Job &job, float *x, int64_t stride, int columns, const float *bias, int channel, int channels,
                            bool relu, float *scratch) {
  const ShdBasis &basis = *job.basis;
  const int vertices = basis.vertices;
  float *adapted = scratch + int64_t(vertices) * kTile;
  gather(vertices, x, nullptr, stride, columns, scratch);
  blocks(basis, job.synthesise_panels, scratch, adapted, kTile, kTile);
  butterflies(vertices, basis.synthesise_start, basis.synthesise_index, basis.synthesise_sign, adapted, scratch);
  float shift[kTile];
  for (int q = 0; q < kTile; ++q, channel = channel + 1 == channels ? 0 : channel + 1) shift[q] = bias ? bias[channel] : 0.0f;
  for (int v = 0; v < vertices; ++v, x += stride, scratch += kTile) {
    if (columns == kTile) {
      for (int q = 0; q < kTile; q += kWidth) {
        Vec value = SHD_LOAD(scratch + q) + SHD_LOAD(shift + q);
        if (relu) value = value > Vec{} ? value : Vec{};
        SHD_STORE(x + q, value);
      }
    } else {
      for (int q = 0; q < columns; ++q) {
        const float value = scratch[q] + shift[q];
        x[q] = relu && !(value > 0) ? 0.0f : value;
      }
    }
  }
}
