// Sums over the neighbours of each voxel at one distance.

// r = a + b, where a null pointer stands for zeros.
SHD_TARGET void add(int64_t n, const float *a, const float *b, float *r) {
  if (!a) std::swap(a, b);
  int64_t i = 0;
  if (!a) {
    for (; i < n; ++i) r[i] = 0.0f;
  } else if (!b) {
    for (; i + kWidth <= n; i += kWidth) SHD_STORE(r + i, SHD_LOAD(a + i));
    for (; i < n; ++i) r[i] = a[i];
  } else {
    for (; i + kWidth <= n; i += kWidth) SHD_STORE(r + i, SHD_LOAD(a + i) + SHD_LOAD(b + i));
    for (; i < n; ++i) r[i] = a[i] + b[i];
  }
}

// r += a + b.
SHD_TARGET void accumulate(int64_t n, const float *a, const float *b, float *r) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) SHD_STORE(r + i, SHD_LOAD(r + i) + (SHD_LOAD(a + i) + SHD_LOAD(b + i)));
  for (; i < n; ++i) r[i] += a[i] + b[i];
}

// Lines along z that the shell sums of one line are made of: the line itself and those beside it in its plane, and of all
// three the sums Ax of the planes before and after.
struct Lines {
  const float *here, *above, *below, *across, *across_above, *across_below;
};

// One channel or as many as a vector holds. A vector as a template argument would lose that it need not be aligned.
struct One {
  typedef float Value;
};
struct Many {
  typedef Vec Value;
};

// Shell sums of one line, of the channels from f on. With T = Ax + Ay they are S1 = T + Az, S2 = AxAy + AzT and
// S3 = AzAxAy, so going along z takes what lies across from registers.
template <class Channels>
SHD_TARGET void shells_along(const Lines &x, int64_t line, int F, int f, const Sums &sums, int64_t at) {
  typedef typename Channels::Value Value;
#define SHD_AT(p) (*reinterpret_cast<const Value *>(p))
  at = at * sums.step + f;
  Value here = SHD_AT(x.here + f), before{}, t_before{}, both_before{};
  Value t = SHD_AT(x.across + f) + (SHD_AT(x.above + f) + SHD_AT(x.below + f));
  Value both = SHD_AT(x.across_above + f) + SHD_AT(x.across_below + f);
  for (int64_t i = f; i < line; i += F, at += sums.step) {
    Value after{}, t_after{}, both_after{};
    if (i + F < line) {
      const int64_t next = i + F;
      after = SHD_AT(x.here + next);
      t_after = SHD_AT(x.across + next) + (SHD_AT(x.above + next) + SHD_AT(x.below + next));
      both_after = SHD_AT(x.across_above + next) + SHD_AT(x.across_below + next);
    }
    if constexpr (kKeepsCentre) keep(here, sums.shell[0] + at);
    keep(Value(t + (before + after)), sums.shell[1] + at);
    keep(Value(both + (t_before + t_after)), sums.shell[2] + at);
    keep(Value(both_before + both_after), sums.shell[3] + at);
    before = here;
    t_before = t;
    both_before = both;
    here = after;
    t = t_after;
    both = both_after;
  }
}
#undef SHD_AT

// Shell sums 1 to 3 of a block of one mode; shell 0 is the ring itself, which is kept beside them where the product wants it.
// With A the sum of two neighbours along an axis: S1 = Ax + Ay + Az, S2 = Ax(Ay + Az) + AyAz, S3 = AxAyAz. Line after line, with
// three of Ax in cache.
SHD_TARGET void shells(const Job &job, const float *x, int F, const Block &block, const Sums &sums, float *scratch) {
  const int64_t Y = job.layer->shape.y, Z = job.layer->shape.z, X = job.x, plane = job.plane_voxels * F, line = Z * F;
  // With a voxel more on each side, whose own sums lack a neighbour and do not count.
  const int64_t from = std::max<int64_t>(block.first - 1, 0), count = (std::min(block.last + 1, Z) - from) * F;
  float *across[3]; // of lines y - 1, y, y + 1
  for (float *&row : across) row = take(scratch, plane_stride(line));
  float *const zeros = take(scratch, plane_stride(line));
  add(count, nullptr, nullptr, zeros);
  x += from * F;
  int64_t done = from; // voxels of the block
  for (int64_t p = block.begin; p < block.end; ++p) {
    const float *centre = x + (p % job.ring) * plane;
    const float *left = p % X > 0 ? x + ((p - 1) % job.ring) * plane : nullptr;
    const float *right = p % X + 1 < X ? x + ((p + 1) % job.ring) * plane : nullptr;
    for (int64_t next = block.low - 1; next <= block.high; ++next) {
      const bool inside = next >= 0 && next < Y;
      add(count, inside && left ? left + next * line : nullptr, inside && right ? right + next * line : nullptr,
          across[(next + 1) % 3]);
      const int64_t y = next - 1;
      if (y < block.low) continue;
      const float *const above = y > 0 ? centre + (y - 1) * line : zeros;
      const float *const below = y + 1 < Y ? centre + (y + 1) * line : zeros;
      const Lines lines{centre + y * line, above, below, across[(y + 1) % 3], across[y % 3], across[(y + 2) % 3]};
      int f = 0;
      for (; f + kWidth <= F; f += kWidth)
        shells_along<Many>(lines, count, F, f, sums, done);
      for (; f < F; ++f) shells_along<One>(lines, count, F, f, sums, done);
      done += Z;
    }
  }
}
