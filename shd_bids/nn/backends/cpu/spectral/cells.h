// The input that lies on cells of 2 x 2 x 2 voxels.

// Products of the input on cells with the four combined weights of one mode, for planes [begin, end) of cells.
SHD_TARGET void multiply_cells(const Job &job, const float *expansion, int64_t begin, int64_t end, const float *weights,
                               float *products, float *factors) {
  const Cells &cells = job.cells;
  const int out = job.layer->out_channels;
  const int64_t plane = cells.y * cells.z;
  for (int64_t p = begin; p < end; ++p) {
    const Segment values{expansion + p % cells.ring * plane * cells.channels, cells.channels};
    const uint8_t *const read = job.layer->read_cells ? job.layer->read_cells + p * plane : nullptr;
    for (int64_t start = skip(read, 0, plane, 0), stop; start < plane; start = skip(read, stop, plane, 0)) {
      stop = skip(read, start, plane, 1);
      for (int n = 0; n < kShells; ++n)
        product(start, stop, &values, 1, cells.channels, weights + n * cell_matrix(job), out,
                products + (p % cells.ring * kShells + n) * plane * out, factors);
    }
  }
}

// r[2 z], r[2 z + 1] = own[z] + beside[z - 1], own[z] + beside[z + 1].
SHD_TARGET void widen(int64_t n, int F, const float *own, const float *beside, float *r) {
  for (int64_t z = 0; z < n; ++z, own += F, beside += F, r += 2 * F) {
    add(F, own, beside - F, r);
    add(F, own, beside + F, r + F);
  }
}

// Add to a block of one mode what the cells give: at each voxel the products of its own cell, and of those beside it along
// one, two and three axes. One axis after another: each adds the next product of the cell beside to that of the own cell.
SHD_TARGET void add_cells(const Job &job, const float *products, const Block &block, float *result, float *scratch) {
  const Cells &cells = job.cells;
  const ShdShape &shape = job.layer->shape;
  const int out = job.layer->out_channels;
  const int64_t plane = cells.y * cells.z * out, short_line = cells.z * out, line = shape.z * out;
  // Cells whose voxels count, and a cell more on each side.
  const int64_t begin = block.first / 2, end = (block.last + 1) / 2;
  const int64_t from = std::max<int64_t>(begin - 1, 0) * out, count = std::min(end + 1, cells.z) * out - from;
  float *along_x[3], *own[3], *beside[3];
  for (float *&row : along_x) {
    row = take(scratch, cell_line(job)) + out; // with a cell of zeros at each end
    add(out, nullptr, nullptr, row - out);
    add(out, nullptr, nullptr, row + short_line);
  }
  for (float *&row : own) row = take(scratch, plane_stride(line));
  for (float *&row : beside) row = take(scratch, plane_stride(line));
  for (int64_t p = block.begin; p < block.end; ++p) {
    const int64_t next_to = p % 2 ? p / 2 + 1 : p / 2 - 1, edge = p % 2 ? job.x - 1 : 0;
    const float *here = products + p / 2 % cells.ring * kShells * plane;
    const float *there = p % job.x == edge ? nullptr : products + next_to % cells.ring * kShells * plane;
    for (int64_t y = block.low / 2 - 1; y <= (block.high + 1) / 2; ++y) {
      const int slot = int((y + 1) % 3), before = int((y + 3) % 3), last = int((y + 2) % 3);
      if (y < 0 || y == cells.y) {
        add(line, nullptr, nullptr, beside[slot]);
      } else {
        for (int n = 0; n < 3; ++n) {
          const int64_t cell = n * plane + y * short_line + from;
          add(count, here + cell, there ? there + plane + cell : nullptr, along_x[n] + from);
        }
        const int64_t at = begin * out;
        widen(end - begin, out, along_x[0] + at, along_x[1] + at, own[slot] + 2 * at);
        widen(end - begin, out, along_x[1] + at, along_x[2] + at, beside[slot] + 2 * at);
      }
      // Both lines of the cells before these; what lies beside the first of them came two turns ago.
      for (int64_t fine = std::max(2 * y - 2, block.low); fine < std::min(2 * y, block.high); ++fine) {
        const int64_t line_at = fine * shape.z, at = (p - job.first) * job.plane_voxels + line_at;
        const uint8_t *const wanted = job.layer->wanted ? job.layer->wanted + p * job.plane_voxels + line_at : nullptr;
        const float *const other = beside[fine % 2 ? slot : last], *const same = own[before];
        for (int64_t start = skip(wanted, 0, shape.z, 0), stop; start < shape.z; start = skip(wanted, stop, shape.z, 0)) {
          stop = skip(wanted, start, shape.z, 1);
          accumulate((stop - start) * out, same + start * out, other + start * out, result + (at + start) * out);
        }
      }
    }
  }
}
