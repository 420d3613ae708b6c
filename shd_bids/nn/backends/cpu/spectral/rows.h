// Batch normalisation and ReLU over rows of channels, and box sums for pooling: all limited by memory, so one pass each.

// Mean and sum of squared deviations of each channel over rows, in blocks that stay in cache, merged in double
// (Chan, Golub and LeVeque 1979): exact to rounding however large the mean.
SHD_TARGET void moments(const RowJob &job, int64_t begin, int64_t end, double *mean, double *squares) {
  const int F = job.channels;
  constexpr int64_t kRowsAtOnce = 64;
  const std::unique_ptr<float[]> block(new float[2 * F]);
  float *m = block.get(), *s = m + F;
  double count = 0;
  for (int f = 0; f < F; ++f) mean[f] = squares[f] = 0;
  for (int64_t row = begin; row < end; row += kRowsAtOnce) {
    const int64_t n = std::min(kRowsAtOnce, end - row);
    const float *y = job.y + row * F, inverse = 1.0f / float(n);
    int f = 0;
    for (; f + kWidth <= F; f += kWidth) {
      Vec sum = Vec{}, square = Vec{};
      for (int64_t r = 0; r < n; ++r) sum += SHD_LOAD(y + r * F + f);
      sum *= inverse;
      for (int64_t r = 0; r < n; ++r) {
        const Vec d = SHD_LOAD(y + r * F + f) - sum;
        square += d * d;
      }
      SHD_STORE(m + f, sum);
      SHD_STORE(s + f, square);
    }
    for (; f < F; ++f) {
      float sum = 0, square = 0;
      for (int64_t r = 0; r < n; ++r) sum += y[r * F + f];
      sum *= inverse;
      for (int64_t r = 0; r < n; ++r) square += (y[r * F + f] - sum) * (y[r * F + f] - sum);
      m[f] = sum;
      s[f] = square;
    }
    const double total = count + double(n);
    for (int f = 0; f < F; ++f) {
      const double delta = m[f] - mean[f];
      mean[f] += delta * double(n) / total;
      squares[f] += s[f] + delta * delta * count * double(n) / total;
    }
    count = total;
  }
}

// out = max(0, y scale + shift)
SHD_TARGET void rectify(const RowJob &job, int64_t begin, int64_t end) {
  const int F = job.channels;
  for (int64_t row = begin; row < end; ++row) {
    const float *y = job.y + row * F;
    float *out = job.out + row * F;
    int f = 0;
    for (; f + kWidth <= F; f += kWidth) {
      const Vec value = SHD_LOAD(y + f) * SHD_LOAD(job.scale + f) + SHD_LOAD(job.shift + f);
      SHD_STORE(out + f, value > Vec{} ? value : Vec{});
    }
    for (; f < F; ++f) {
      const float value = y[f] * job.scale[f] + job.shift[f];
      out[f] = value > 0 ? value : 0.0f;
    }
  }
}

// Sums over rows of the gradient where the unit is on, and of that times y - centre.
SHD_TARGET void gradient_sums(const RowJob &job, int64_t begin, int64_t end, double *plain, double *weighted) {
  const int F = job.channels;
  constexpr int64_t kRowsAtOnce = 64;
  for (int f = 0; f < F; ++f) plain[f] = weighted[f] = 0;
  for (int64_t row = begin; row < end; row += kRowsAtOnce) {
    const int64_t n = std::min(kRowsAtOnce, end - row);
    const float *y = job.y + row * F, *g = job.gradient + row * F;
    int f = 0;
    for (; f + kWidth <= F; f += kWidth) {
      Vec a = Vec{}, b = Vec{};
      const Vec scale = SHD_LOAD(job.scale + f), shift = SHD_LOAD(job.shift + f), centre = SHD_LOAD(job.centre + f);
      for (int64_t r = 0; r < n; ++r) {
        const Vec v = SHD_LOAD(y + r * F + f), on = v * scale + shift > Vec{} ? SHD_LOAD(g + r * F + f) : Vec{};
        a += on;
        b += on * (v - centre);
      }
      for (int l = 0; l < kWidth; ++l) {
        plain[f + l] += a[l];
        weighted[f + l] += b[l];
      }
    }
    for (; f < F; ++f)
      for (int64_t r = 0; r < n; ++r)
        if (y[r * F + f] * job.scale[f] + job.shift[f] > 0) {
          plain[f] += g[r * F + f];
          weighted[f] += double(g[r * F + f]) * (y[r * F + f] - job.centre[f]);
        }
  }
}

// out = scale * gradient where on - offset - slope * y
SHD_TARGET void rectify_gradient(const RowJob &job, int64_t begin, int64_t end) {
  const int F = job.channels;
  for (int64_t row = begin; row < end; ++row) {
    const float *y = job.y + row * F, *g = job.gradient + row * F;
    float *out = job.out + row * F;
    int f = 0;
    for (; f + kWidth <= F; f += kWidth) {
      const Vec v = SHD_LOAD(y + f), scale = SHD_LOAD(job.scale + f);
      const Vec on = v * scale + SHD_LOAD(job.shift + f) > Vec{} ? SHD_LOAD(g + f) : Vec{};
      SHD_STORE(out + f, scale * on - SHD_LOAD(job.offset + f) - SHD_LOAD(job.slope + f) * v);
    }
    for (; f < F; ++f) {
      const bool on = y[f] * job.scale[f] + job.shift[f] > 0;
      out[f] = (on ? job.scale[f] * g[f] : 0.0f) - job.offset[f] - job.slope[f] * y[f];
    }
  }
}

// One output vertex at a time: factor times the sum over its source vertices and a box of source voxels.
SHD_TARGET void box_sum(const BoxJob &job, int64_t begin, int64_t end) {
  const int F = job.channels;
  const int64_t *in = job.in_size, *to = job.out_size;
  const int64_t in_vertex = job.batch * in[0] * in[1] * in[2] * F, out_vertex = job.batch * to[0] * to[1] * to[2] * F;
  for (int64_t vertex = begin; vertex < end; ++vertex) {
    float *out = job.out + vertex * out_vertex;
    for (int64_t b = 0; b < job.batch; ++b)
      for (int64_t x = 0; x < to[0]; ++x)
        for (int64_t y = 0; y < to[1]; ++y)
          for (int64_t z = 0; z < to[2]; ++z, out += F) {
            int f = 0;
            for (; f < F; f += kWidth) {
              const int lanes = std::min(kWidth, F - f);
              Vec sum = Vec{};
              float rest[kWidth] = {};
              for (int s = 0; s < job.sources; ++s)
                for (int64_t i = job.start[0][x]; i < job.end[0][x]; ++i)
                  for (int64_t j = job.start[1][y]; j < job.end[1][y]; ++j)
                    for (int64_t k = job.start[2][z]; k < job.end[2][z]; ++k) {
                      const float *source = job.in + job.index[vertex * job.sources + s] * in_vertex +
                                            (((b * in[0] + i) * in[1] + j) * in[2] + k) * F + f;
                      if (lanes == kWidth)
                        sum += SHD_LOAD(source);
                      else
                        for (int l = 0; l < lanes; ++l) rest[l] += source[l];
                    }
              if (lanes == kWidth)
                SHD_STORE(out + f, sum * job.factor);
              else
                for (int l = 0; l < lanes; ++l) out[f + l] = rest[l] * job.factor;
            }
          }
  }
}
