// Blocks of voxels whose shell sums stay in cache, and the marks of those that count.

// Lines [low, high) along z of planes [begin, end): a block, of which at most one of the two is a part of all there is. Of each
// line those voxels count that lie in [first, last).
struct Block {
  int64_t begin, end, low, high, first, last;
};

// First voxel from `at` on whose mark is not `mark`, which is 0 or 1; without marks all are 1.
inline int64_t skip(const uint8_t *marks, int64_t at, int64_t end, uint8_t mark) {
  if (!marks) return mark ? end : at;
  while (at < end && marks[at] == mark) ++at;
  return at;
}

// Whether a tile of columns from `column` on, of F channels, touches a marked voxel.
inline bool any(const uint8_t *marks, int64_t column, int64_t columns, int F) {
  const int64_t end = (column + columns - 1) / F + 1;
  return skip(marks, column / F, end, 0) < end;
}

// Blocks of so many planes, and each of them in turn.
inline int64_t blocks_of(const Job &job, int64_t planes) {
  return (planes + job.span - 1) / job.span * ((job.layer->shape.y + job.lines - 1) / job.lines);
}
inline Block block_of(const Job &job, int64_t begin, int64_t end, int64_t at) {
  const int64_t high = job.layer->shape.y, Z = job.layer->shape.z, parts = (high + job.lines - 1) / job.lines;
  const int64_t p = begin + at / parts * job.span, low = at % parts * job.lines;
  Block block{p, std::min(p + job.span, end), low, std::min(low + job.lines, high), 0, Z};
  if (!job.layer->wanted) return block;
  block.first = Z;
  block.last = 0;
  for (int64_t plane = block.begin; plane < block.end; ++plane)
    for (int64_t y = block.low; y < block.high; ++y) {
      const uint8_t *const marks = job.layer->wanted + plane * job.plane_voxels + y * Z;
      block.first = skip(marks, 0, block.first, 0);
      for (int64_t z = Z; z > block.last; --z)
        if (marks[z - 1]) block.last = z;
    }
  return block;
}
