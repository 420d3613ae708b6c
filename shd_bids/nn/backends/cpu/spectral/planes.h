// Planes into the basis and out of it, shared among threads.

// Analyse planes [begin, end) of x into a ring of planes, together with the other threads: takes tiles number
// `base`, `base + 1`, ... of the phase and returns the number after its last.
SHD_TARGET int64_t analyse_planes(const Job &job, const Source &x, int64_t begin, int64_t end, float *out, int64_t ring,
                                  int64_t base, int64_t &ticket, std::atomic<int64_t> &counter, float *scratch) {
  const int64_t plane = x.plane_voxels * x.channels, out_stride = ring * plane;
  while (begin < end) {
    const int64_t run_end = std::min(end, (begin / ring + 1) * ring); // the ring wraps there
    const int64_t columns = (run_end - begin) * plane, tiles = (columns + kTile - 1) / kTile;
    for (; ticket < base + tiles; ticket = counter.fetch_add(1)) {
      const int64_t column = (ticket - base) * kTile, width = std::min<int64_t>(kTile, columns - column);
      if (any(x.read, begin * plane + column, width, x.channels))
        to_modes(job, x.data + begin * plane + column, x.parent, x.stride, out + (begin % ring) * plane + column, out_stride,
                 int(width), scratch);
    }
    base += tiles;
    begin = run_end;
  }
  return base;
}

// Synthesise planes [begin, end) of x, which has `planes` of them, in place.
SHD_TARGET int64_t synthesise_planes(const Job &job, float *x, int F, int64_t planes, int64_t begin, int64_t end,
                                     const float *bias, bool relu, int64_t base, int64_t &ticket,
                                     std::atomic<int64_t> &counter, float *scratch) {
  const int64_t plane = job.plane_voxels * F, columns = (end - begin) * plane, tiles = (columns + kTile - 1) / kTile;
  for (; ticket < base + tiles; ticket = counter.fetch_add(1)) {
    const int64_t column = (ticket - base) * kTile, width = std::min<int64_t>(kTile, columns - column);
    if (any(job.layer->wanted, (job.first + begin) * plane + column, width, F))
      to_vertices(job, x + begin * plane + column, planes * plane, int(width), bias, int(column % F), F, relu, scratch);
  }
  return base + tiles;
}

// Analyse the planes of a slab that came.
SHD_TARGET void analyse(const Job &job, int thread) {
  const ShdLayer &layer = *job.layer;
  const ShdSlab &slab = *job.slab;
  const bool on_cells = job.input == job.fine;
  const int F = layer.in_channels[job.input];
  const int64_t ring = on_cells ? job.cells.ring : job.ring, Y = on_cells ? job.cells.y : layer.shape.y;
  const int64_t Z = on_cells ? job.cells.z : layer.shape.z;
  float *out = on_cells ? job.cells.expansion : job.expansion;
  for (int j = 0; !on_cells && j < job.input; ++j)
    out += int64_t(job.basis->vertices) * ring * job.plane_voxels * layer.in_channels[j];
  const uint8_t *const read = on_cells ? layer.read_cells : layer.read;
  const uint8_t *const inside = on_cells ? layer.inside_cells : layer.inside;
  float *const tiles = job.scratch + thread * job.scratch_size;
  // What lies on end in the slab as in the ring: lines, or all lines of a plane.
  const int64_t lines = slab.line == Z ? Y : 1, run = lines * Z * F, columns = (run + kTile - 1) / kTile;
  const int64_t slab_plane = slab.lines * slab.line * F, slab_stride = slab.planes * slab_plane, out_stride = ring * Y * Z * F;
  const int64_t count = (job.last - job.first) * (Y / lines) * columns;
  for (int64_t ticket; (ticket = job.counters[0].fetch_add(1)) < count;) {
    const int64_t column = ticket % columns * kTile, width = std::min<int64_t>(kTile, run - column);
    const int64_t y = ticket / columns % (Y / lines) * lines, p = job.first + ticket / columns / (Y / lines);
    const int64_t at = (p * Y + y) * Z * F + column;
    if (!any(read, at, width, F)) continue;
    float *const target = out + (p % ring * Y + y) * Z * F + column;
    if (!any(inside, at, width, F)) {
      for (int row = 0; row < job.basis->vertices; ++row) std::fill_n(target + row * out_stride, width, 0.0f);
      continue;
    }
    const float *const x = slab.data + (p - slab.first) * slab_plane + ((slab.low + y) * slab.line + slab.left) * F + column;
    to_modes(job, x, on_cells ? layer.parent : nullptr, slab_stride, target, out_stride, int(width), tiles, inside, at, F);
  }
  end_products();
}
