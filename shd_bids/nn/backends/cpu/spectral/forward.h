// One layer: analyse, mode by mode shells and product, synthesise; a group of planes at a time.

SHD_TARGET void forward(const Job &job, int thread) {
  const ShdBasis &basis = *job.basis;
  const ShdLayer &layer = *job.layer;
  const Cells &cells = job.cells;
  const int out = layer.out_channels, shells_used = job.halo ? kShells : 1;
  const int64_t depth = int64_t(shells_used) * job.fine_channels, ring_voxels = job.ring * job.plane_voxels;
  const int64_t cells_voxels = cells.ring * cells.y * cells.z;
  const int64_t planes = job.last - job.first;
  float *free = job.scratch + thread * job.scratch_size;
  float *const tiles = take(free, tile_size(job)), *const neighbours = take(free, neighbours_size(job, widest(job)));
  float *const weights = take(free, weights_size(job, job.fine_channels, out));
  float *const cell_weights = take(free, kShells * cell_matrix(job)), *const cell_lines = take(free, cell_lines_size(job));
  float *const factors = take(free, factors_size(job));
  Rows rows(job, free);
  std::vector<Block> blocks; // those of a group that hold a voxel whose result matters
  std::atomic<int64_t> *counter = job.counters;
  for (int64_t begin = job.first, done = std::max<int64_t>(begin - job.halo, 0); begin < job.last;
       begin += job.group, counter += 3) {
    const int64_t end = std::min(begin + job.group, job.last), want = std::min(end + job.halo, job.planes);
    int64_t ticket = counter[0].fetch_add(1), base = 0;
    float *expansion = job.expansion;
    const int64_t plane = job.plane_voxels, cells_plane = cells.y * cells.z;
    for (int j = 0; job.inputs && j < job.fine; ++j) {
      const int F = layer.in_channels[j];
      const Source x{job.inputs[j], F, job.planes * plane * F, plane, nullptr, nullptr};
      base = analyse_planes(job, x, done, want, expansion, job.ring, base, ticket, counter[0], tiles);
      expansion += int64_t(basis.vertices) * ring_voxels * F;
    }
    int64_t cells_begin = cells.begin, cells_end = cells.end;
    if (job.inputs && cells.channels) {
      cells_begin = begin == job.first ? done / 2 : (done + 1) / 2;
      cells_end = (want + 1) / 2;
      const int F = cells.channels;
      const Source x{job.inputs[job.fine], F, cells.planes * cells_plane * F, cells_plane, nullptr, layer.parent};
      analyse_planes(job, x, cells_begin, cells_end, cells.expansion, cells.ring, base, ticket, counter[0], tiles);
    }
    done = want;
    blocks.clear();
    for (int64_t at = 0, count = blocks_of(job, end - begin); at < count; ++at) {
      const Block block = block_of(job, begin, end, at);
      if (block.first < block.last) blocks.push_back(block);
    }
    job.barrier->wait();
    for (int64_t mode; (mode = counter[1].fetch_add(1)) < basis.distinct;) {
      int copies;
      const int row = mode_row(basis, mode, copies);
      const float *terms = basis.terms + mode * basis.order;
      for (int j = 0, first = 0; j < job.fine; first += layer.in_channels[j++])
        mode_weights(job, terms, job.sph, job.spa, job.channels, round_up(out, kWidth), first, layer.in_channels[j], 0, out,
                     weights, int64_t(shells_used) * first, depth);
      prepare(weights, depth, out);
      if (cells_begin < cells_end) {
        mode_weights(job, terms, job.sph, job.spa_cells, job.channels, round_up(out, kWidth), job.fine_channels, cells.channels,
                     0, out, cell_weights, 0, cells.channels, cell_matrix(job));
        for (int n = 0; n < kShells; ++n) prepare(cell_weights + n * cell_matrix(job), cells.channels, out);
      }
      for (int copy = 0; copy < copies; ++copy) {
        float *const products = cells.products + (row + copy) * cells_voxels * kShells * out;
        multiply_cells(job, cells.expansion + (row + copy) * cells_voxels * cells.channels, cells_begin, cells_end,
                       cell_weights, products, factors);
        for (const Block &block : blocks) {
          const float *ring = job.expansion;
          for (int j = 0; j < job.fine; ++j) {
            const int64_t stride = ring_voxels * layer.in_channels[j];
            if (job.halo)
              shells(job, ring + (row + copy) * stride, layer.in_channels[j], block, rows.sums(j), neighbours);
            ring += basis.vertices * stride;
          }
          for (int64_t from = block.begin, to; from < block.end; from = to) {
            to = std::min(block.end, (from / job.ring + 1) * job.ring); // the ring wraps there
            rows.go_to(block, from, row + copy);
            const int64_t first = (from - job.first) * job.plane_voxels + block.low * layer.shape.z;
            const int64_t voxels = (to - from) * (block.high - block.low) * layer.shape.z;
            const uint8_t *const wanted = layer.wanted ? layer.wanted + first + job.first * job.plane_voxels : nullptr;
            float *const result = job.output + ((row + copy) * planes * job.plane_voxels + first) * out;
            for (int64_t start = skip(wanted, 0, voxels, 0), stop; start < voxels; start = skip(wanted, stop, voxels, 0)) {
              stop = skip(wanted, start, voxels, 1);
              rows.multiply_by(weights, depth, start, stop, out, result);
            }
          }
          if (cells.channels)
            add_cells(job, products, block, job.output + (row + copy) * planes * job.plane_voxels * out, cell_lines);
        }
      }
    }
    job.barrier->wait();
    ticket = counter[2].fetch_add(1);
    synthesise_planes(job, job.output, out, planes, begin - job.first, end - job.first, job.bias, job.relu, 0, ticket,
                      counter[2], tiles);
  }
  end_products();
}
