// Entry points of batch normalisation, ReLU and pooling.

#include <thread>
#include <vector>

#include "job.h"
#include "level.h"

namespace shd {
namespace {

// Split [0, n) among threads; work(part, begin, end).
template <class Work> void split(int64_t n, int threads, const Work &work) {
  threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, n)));
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { work(t, n * t / threads, n * (t + 1) / threads); });
  work(0, 0, n / threads);
  for (auto &other : others) other.join();
}

} // namespace
} // namespace shd

using namespace shd;

extern "C" {

// Mean and biased variance of each channel of y[rows][channels].
void shd_moments(int64_t rows, int channels, const float *y, double *mean, double *variance, int threads, int level) {
  const RowJob job{channels, y, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  std::vector<double> parts(2 * int64_t(channels) * threads);
  std::vector<int64_t> counts(threads);
  split(rows, threads, [&](int part, int64_t begin, int64_t end) {
    counts[part] = end - begin;
    level_of(level).moments(job, begin, end, &parts[2 * part * channels], &parts[(2 * part + 1) * channels]);
  });
  for (int f = 0; f < channels; ++f) {
    double count = 0, m = 0, s = 0;
    for (int part = 0; part < threads; ++part) {
      if (!counts[part]) continue;
      const double n = double(counts[part]), delta = parts[2 * part * channels + f] - m;
      s += parts[(2 * part + 1) * channels + f] + delta * delta * count * n / (count + n);
      m += delta * n / (count + n);
      count += n;
    }
    mean[f] = m;
    variance[f] = count ? s / count : 0;
  }
}

// out = max(0, y scale + shift)
void shd_rectify(int64_t rows, int channels, const float *y, const float *scale, const float *shift, float *out, int threads,
                 int level) {
  const RowJob job{channels, y, nullptr, scale, shift, nullptr, nullptr, nullptr, out};
  split(rows, threads, [&](int, int64_t begin, int64_t end) { level_of(level).rectify(job, begin, end); });
}

// Per channel: sum of the gradient where y scale + shift > 0, and of that times (y - centre).
void shd_gradient_sums(int64_t rows, int channels, const float *gradient, const float *y, const float *scale,
                       const float *shift, const float *centre, double *plain, double *weighted, int threads, int level) {
  const RowJob job{channels, y, gradient, scale, shift, centre, nullptr, nullptr, nullptr};
  std::vector<double> parts(2 * int64_t(channels) * threads);
  split(rows, threads, [&](int part, int64_t begin, int64_t end) {
    level_of(level).gradient_sums(job, begin, end, &parts[2 * part * channels], &parts[(2 * part + 1) * channels]);
  });
  for (int f = 0; f < channels; ++f) {
    plain[f] = weighted[f] = 0;
    for (int part = 0; part < threads; ++part) {
      plain[f] += parts[2 * part * channels + f];
      weighted[f] += parts[(2 * part + 1) * channels + f];
    }
  }
}

// out = scale gradient [y scale + shift > 0] - offset - slope y
void shd_rectify_gradient(int64_t rows, int channels, const float *gradient, const float *y, const float *scale,
                          const float *shift, const float *offset, const float *slope, float *out, int threads, int level) {
  const RowJob job{channels, y, gradient, scale, shift, nullptr, offset, slope, out};
  split(rows, threads, [&](int, int64_t begin, int64_t end) { level_of(level).rectify_gradient(job, begin, end); });
}

// in[vertices][batch][in_size][channels] to out[out_vertices][batch][out_size][channels]. `ranges` holds for each axis the
// starts, then the ends, one per output voxel along it.
void shd_box_sum(const float *in, float *out, int64_t out_vertices, int64_t batch, const int64_t *in_size,
                 const int64_t *out_size, int channels, int sources, const int64_t *index, const int64_t *ranges, float factor,
                 int threads, int level) {
  BoxJob job{};
  job.out_vertices = out_vertices;
  job.batch = batch;
  job.channels = channels;
  job.sources = sources;
  job.index = index;
  job.factor = factor;
  job.in = in;
  job.out = out;
  for (int axis = 0; axis < 3; ++axis) {
    job.in_size[axis] = in_size[axis];
    job.out_size[axis] = out_size[axis];
    job.start[axis] = ranges;
    job.end[axis] = ranges + out_size[axis];
    ranges += 2 * out_size[axis];
  }
  split(out_vertices, threads, [&](int, int64_t begin, int64_t end) { level_of(level).box_sum(job, begin, end); });
}

}
