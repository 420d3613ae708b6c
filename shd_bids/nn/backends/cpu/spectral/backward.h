// Gradients of one layer: the same with the output gradient going in and transposed weights.

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

SHD_TARGET void backward(const Job &job, int thread) {
  const ShdBasis &basis = *job.basis;
  const ShdLayer &layer = *job.layer;
  const int out = layer.out_channels, order = basis.order, shells_used = job.halo ? kShells : 1;
  const int64_t depth = int64_t(shells_used) * out, voxels = job.group * job.plane_voxels;
  const int64_t padded = round_up(out, kWidth), padded_back = round_up(job.channels, kWidth);
  const int64_t ring_voxels = job.ring * job.plane_voxels;
  float *free = job.scratch + thread * job.scratch_size;
  float *const tiles = take(free, tile_size(job)), *const neighbours = take(free, neighbours_size(job, out));
  float *const gradient = take(free, gradient_size(job)), *const weights = take(free, weights_size(job, out, job.channels));
  Sums sums{{}, out};
  for (int d = 1; d < kShells; ++d) sums.shell[d] = take(free, sum_size(job, out));
  Segment parts[kShells];
  float *sums_sph = job.gradient_sph + int64_t(thread) * order * job.channels * padded;
  float *sums_spa = job.gradient_spa + int64_t(thread) * kShells * job.channels * padded;
  const float *sph_back = job.sph + int64_t(order) * job.channels * padded;
  const float *spa_back = job.spa + int64_t(kShells) * job.channels * padded;
  std::atomic<int64_t> *counter = job.counters;
  for (int64_t begin = 0, done = 0; begin < job.planes; begin += job.group, counter += 3) {
    const int64_t end = std::min(begin + job.group, job.planes), want = std::min(end + job.halo, job.planes);
    int64_t ticket = counter[0].fetch_add(1);
    const int64_t plane = job.plane_voxels;
    const Source gradients{job.output_gradient, out, job.planes * plane * out, plane, nullptr, nullptr};
    int64_t base = analyse_planes(job, gradients, done, want, job.expansion, job.ring, 0, ticket, counter[0], tiles);
    float *expansion = job.input_expansion;
    for (int j = 0; j < layer.inputs; ++j) {
      const int F = layer.in_channels[j];
      const Source x{job.inputs[j], F, job.planes * plane * F, plane, nullptr, nullptr};
      // Planes [begin, end) lie at the start of their buffer: it is a ring that never wraps within the group.
      base = analyse_planes(job, x, begin, end, expansion, job.group, base, ticket, counter[0], tiles);
      expansion += int64_t(basis.vertices) * voxels * F;
    }
    done = want;
    job.barrier->wait();
    for (int64_t mode; (mode = counter[1].fetch_add(1)) < basis.distinct;) {
      int copies;
      const int row = mode_row(basis, mode, copies);
      const float *terms = basis.terms + mode * order;
      for (int copy = 0; copy < copies; ++copy) {
        const float *ring = job.expansion + (row + copy) * ring_voxels * out;
        for (int64_t at = 0, blocks = blocks_of(job, end - begin); at < blocks; ++at) {
          const Block block = block_of(job, begin, end, at);
          if (job.halo) shells(job, ring, out, block, sums, neighbours);
          for (int64_t from = block.begin, to; from < block.end; from = to) {
            to = std::min(block.end, (from / job.ring + 1) * job.ring); // the ring wraps there
            const int64_t rows = (to - from) * (block.high - block.low) * layer.shape.z, skipped = block.low * layer.shape.z;
            const int count = segments(job, ring, out, block, from, sums, parts);
            const float *input = job.input_expansion;
            for (int j = 0, first = 0; j < layer.inputs; first += layer.in_channels[j++]) {
              const int F = layer.in_channels[j];
              if (job.input_gradients[j]) {
                mode_weights(job, terms, sph_back, spa_back, out, padded_back, 0, out, first, F, weights, 0, depth);
                multiply(0, rows, parts, count, depth, weights, F,
                         job.input_gradients[j] + (((row + copy) * job.planes + from) * job.plane_voxels + skipped) * F);
              }
              const float *expanded = input + ((row + copy) * voxels + (from - begin) * job.plane_voxels + skipped) * F;
              for (int d = 0; d < count; ++d)
                for (int q = 0; q < out; q += kPanel)
                  side_product(F, expanded, F, parts[d].data + q, out, rows, gradient + first * depth + d * out + q, depth,
                               std::min(kPanel, out - q), copy > 0 || from > begin || block.low > 0);
              input += int64_t(basis.vertices) * voxels * F;
            }
          }
        }
      }
      contract(job, terms, gradient, 0, job.channels, sums_sph, sums_spa);
    }
    job.barrier->wait();
    ticket = counter[2].fetch_add(1);
    base = 0;
    for (int j = 0; j < layer.inputs; ++j)
      if (job.input_gradients[j])
        base = synthesise_planes(job, job.input_gradients[j], layer.in_channels[j], job.planes, begin, end, nullptr, false,
                                 base, ticket, counter[2], tiles);
  }
}
