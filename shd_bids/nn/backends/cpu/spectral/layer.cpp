// The spatio-spherical convolution on the CPU: forward and backward of one layer, each in one call.
//
// Arrays are float32, rows outermost: x[vertex][plane][voxel of the plane][channel], where a plane is one x position of one
// batch element. The layer runs through the volume a few planes at a time:
//
//   1. analyse     columns of the next planes: butterflies of the grid's symmetry, then one small matrix per block
//   2. mode        per mode: shell sums over space, then one product with that mode's weights, made on the spot
//   3. synthesise  the same columns back, in place in the output, with bias and ReLU
//
// so that the expansion in eigenvectors is only ever held for those planes. Backward is the same with the output gradient
// going in and transposed weights, since the basis is orthogonal and shell sums are symmetric.
//
// Portable C++17 with the vector extension of GCC and Clang, no dependency, plain C interface. The kernels are compiled once per
// instruction set (kernels.h); the best one the processor has is chosen at run time.

#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "job.h"
#include "level.h"

namespace shd {
namespace {

// Scratch memory of one call, cut into arrays aligned to cache lines. It stays with the calling thread: fresh pages cost more
// than the work done in them. Unusually large ones are given back. It has pages of its own: among other blocks, one that is
// outgrown would leave a gap.
class Workspace {
public:
  ~Workspace() { release(); }
  float *reserve(int64_t size) {
    if (size > size_) {
      release();
      void *pages = mmap(nullptr, size * sizeof(float), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (pages == MAP_FAILED) throw std::bad_alloc();
      data_ = static_cast<float *>(pages);
      size_ = size;
    }
    return data_;
  }
  void trim() {
    if (size_ > (int64_t(64) << 20)) release();
  }

private:
  void release() {
    if (data_) munmap(data_, size_ * sizeof(float));
    data_ = nullptr;
    size_ = 0;
  }
  float *data_ = nullptr;
  int64_t size_ = 0;
};

thread_local Workspace workspace;

// A number rounded to bfloat16, to nearest and to even.
uint32_t rounded(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float pair_of(float first, float second) {
  const uint32_t bits = rounded(first) | rounded(second) << 16;
  float pair;
  std::memcpy(&pair, &bits, sizeof pair);
  return pair;
}

// Rows of each block matrix in panels, zero-padded, see Factors: one cache line feeds a tile of vectors.
std::vector<float> pack_panels(const ShdBasis &basis, const float *matrix, const Level &level) {
  std::vector<float> packed;
  const int together = level.factors == kSingle ? 1 : 2; // columns
  for (int block = 0; block < basis.blocks; ++block) {
    const int n = basis.size[block], count = (n + together - 1) / together;
    const auto at = [=](int row, int column) { return row < n && column < n ? matrix[row * n + column] : 0.0f; };
    for (int first = 0; first < n; first += level.rows)
      for (int i = 0; i < level.rows * count; ++i) {
        const bool along = level.factors == kPairsAlong;
        const int row = first + (along ? i / count : i % level.rows);
        const int column = together * (along ? i % count : i / level.rows);
        packed.push_back(together == 1 ? at(row, column) : pair_of(at(row, column), at(row, column + 1)));
      }
    matrix += n * n;
  }
  return packed;
}

// weights[out][in][term] to [term][k][vectorised], where the vectorised channel is `out` going forward and `in` going back.
std::vector<float> pack_weights(const float *weights, int out, int in, int terms, bool forward, int width) {
  const int rows = forward ? in : out, columns = forward ? out : in;
  const int64_t padded = round_up(columns, width);
  std::vector<float> packed(weights ? terms * rows * padded : 0, 0.0f);
  for (int o = 0; weights && o < out; ++o)
    for (int i = 0; i < in; ++i)
      for (int t = 0; t < terms; ++t)
        packed[(int64_t(t) * rows + (forward ? i : o)) * padded + (forward ? o : i)] = *weights++;
  return packed;
}

void run(const Job &job, void (*work)(const Job &, int), int threads) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, std::cref(job), t);
  work(job, 0);
  for (auto &other : others) other.join();
}

// Channels of all inputs together.
int channels_of(const ShdLayer &layer) {
  int channels = 0;
  for (int j = 0; j < layer.inputs; ++j) channels += layer.in_channels[j];
  return channels;
}

// Choose the blocks of shells and product: a rectangle of one plane, or whole planes.
void cut(Job &job) {
  const ShdShape &shape = job.layer->shape;
  const int64_t voxels = std::max<int64_t>(job.plane_voxels, 1), lines = std::max<int64_t>(kBlock / std::max<int64_t>(shape.z, 1), 1);
  job.span = job.halo ? std::min(job.group, std::max<int64_t>(kBlock / voxels, 1)) : job.group;
  job.lines = job.span > 1 || !job.halo ? shape.y : std::min(shape.y, job.layer->parent ? round_up(lines, 2) : lines);
}

void describe(Job &job, const ShdBasis &basis, const ShdLayer &layer, int cached_channels) {
  const ShdShape &shape = layer.shape;
  job.basis = &basis;
  job.layer = &layer;
  job.planes = shape.batch * shape.x;
  job.plane_voxels = shape.y * shape.z;
  job.x = shape.x;
  job.last = job.planes;
  job.halo = layer.weight_spa ? 1 : 0;
  job.channels = channels_of(layer);
  job.cells.channels = layer.parent ? layer.in_channels[layer.inputs - 1] : 0;
  job.fine = layer.inputs - (layer.parent ? 1 : 0);
  job.fine_channels = job.channels - job.cells.channels;
  const int64_t plane_bytes = std::max<int64_t>(basis.vertices * job.plane_voxels * cached_channels * 4, 1);
  const int64_t held = std::min(layer.cache_bytes, std::max(job.planes * plane_bytes / kHeldShare, kLeastHeld));
  const int64_t fitting = std::max<int64_t>(held / plane_bytes - 2 * job.halo, 1);
  const int64_t groups = (job.planes + fitting - 1) / fitting;
  job.group = groups ? (job.planes + groups - 1) / groups : 0;
  job.ring = std::min(job.group + 2 * job.halo, job.planes);
  if (layer.parent) {
    job.cells.planes = job.planes / 2;
    job.cells.ring = std::min(job.group / 2 + 2, job.cells.planes);
    job.cells.y = shape.y / 2;
    job.cells.z = shape.z / 2;
  }
  cut(job);
}

// The same for planes [first, last) of a volume whose planes come a few at a time.
void describe_slabs(Job &job, const ShdBasis &basis, const ShdLayer &layer, int64_t first, int64_t last) {
  describe(job, basis, layer, 1);
  job.first = first;
  job.last = last;
  job.group = last - first;
  job.ring = layer.ring;
  job.cells.ring = layer.cells_ring;
  cut(job);
}

// Numbers that stay from one group of planes to the next, and where they lie.
int64_t held_size(const Job &job) {
  const int64_t cells = job.cells.ring * job.cells.y * job.cells.z;
  return job.basis->vertices * (job.ring * job.plane_voxels * job.fine_channels +
                                cells * (job.cells.channels + kShells * job.layer->out_channels));
}

void divide(Job &job, float *held) {
  job.expansion = held;
  job.cells.expansion = held + job.basis->vertices * job.ring * job.plane_voxels * job.fine_channels;
  job.cells.products =
      job.cells.expansion + job.basis->vertices * job.cells.ring * job.cells.y * job.cells.z * job.cells.channels;
}

// The neighbour of a voxel along an axis is of its own cell on one side and of the cell beside it on the other. So its four
// shell sums are sums of its cell and of those one step away along n axes: 1, 3, 3, 1 times its own; 0, 1, 2, 1 times those
// with n = 1; 0, 0, 1, 1 and 0, 0, 0, 1 times those with n = 2 and 3. Weights [out][in][shell] to [out][in][n].
std::vector<float> combined_shells(const float *spa, int64_t pairs) {
  std::vector<float> combined;
  for (const float *w = spa; w < spa + kShells * pairs; w += kShells)
    combined.insert(combined.end(), {w[0] + 3 * w[1] + 3 * w[2] + w[3], w[1] + 2 * w[2] + w[3], w[2] + w[3], w[3]});
  return combined;
}

// Run all groups of planes, three phases each, on all threads.
void run_groups(Job &job, void (*work)(const Job &, int)) {
  const ShdBasis &basis = *job.basis;
  const ShdLayer &layer = *job.layer;
  const Level &level = level_of(layer.level);
  const auto analyse = pack_panels(basis, basis.analyse_matrix, level);
  const auto synthesise = pack_panels(basis, basis.synthesise_matrix, level);
  const int64_t phases = 3 * ((job.last - job.first + job.group - 1) / job.group);
  const std::unique_ptr<std::atomic<int64_t>[]> counters(new std::atomic<int64_t>[phases]());
  Barrier barrier(layer.threads);
  job.analyse_panels = analyse.data();
  job.synthesise_panels = synthesise.data();
  job.counters = counters.get();
  job.barrier = &barrier;
  run(job, work, layer.threads);
  workspace.trim();
}

// Make the result of what is analysed, or of job.inputs, from job.first to job.last.
void evaluate(Job &job, const float *bias, int relu, float *output) {
  const ShdBasis *basis = job.basis;
  const ShdLayer *layer = job.layer;
  const Level &level = level_of(layer->level);
  const int out = layer->out_channels, on_cells = job.cells.channels;
  const auto sph = pack_weights(layer->weight_sph, out, job.channels, basis->order, true, level.width);
  const auto spa = pack_weights(layer->weight_spa, out, job.channels, kShells, true, level.width);
  const auto combined = combined_shells(layer->weight_spa, on_cells ? int64_t(out) * job.channels : 0);
  const auto spa_cells = pack_weights(on_cells ? combined.data() : nullptr, out, job.channels, kShells, true, level.width);
  job.scratch_size = tile_size(job) + neighbours_size(job, widest(job)) + weights_size(job, job.fine_channels, out) +
                     kShells * cell_matrix(job) + cell_lines_size(job) + factors_size(job);
  for (int j = 0; j < job.fine && level.factors == kSingle; ++j)
    job.scratch_size += (kShells - 1) * (sum_size(job, layer->in_channels[j]) + 16);
  if (level.factors != kSingle) job.scratch_size += rows_size(job) + 16;
  job.scratch_size = round_up(job.scratch_size + 7 * 16, 16);
  const int64_t held = layer->held ? 0 : round_up(held_size(job), 16);
  float *free = workspace.reserve(held + layer->threads * job.scratch_size);
  divide(job, layer->held ? layer->held : free);
  job.scratch = free + held;
  job.output = output;
  job.bias = bias;
  job.relu = relu;
  job.sph = sph.data();
  job.spa = spa.data();
  job.spa_cells = spa_cells.data();
  run_groups(job, level.forward);
}

} // namespace
} // namespace shd

using namespace shd;

extern "C" {

// out[V][planes][voxels][O] = layer(inputs) + bias, rectified where asked.
void shd_forward(const ShdBasis *basis, const ShdLayer *layer, const float *const *inputs, const float *bias, int relu,
                 float *output) {
  const int channels = channels_of(*layer);
  const int out = layer->out_channels, on_cells = layer->parent ? layer->in_channels[layer->inputs - 1] : 0;
  Job job{};
  // A plane of cells is a quarter of one of voxels, and they are half as many.
  describe(job, *basis, *layer, channels - on_cells + (on_cells ? (on_cells + kShells * out) / 8 : 0));
  job.inputs = inputs;
  if (job.group * job.plane_voxels > 0) evaluate(job, bias, relu, output);
}

// The same a few planes at a time. First analyse planes [begin, end) of one input, of a slab that came ...
void shd_analyse(const ShdBasis *basis, const ShdLayer *layer, int input, const ShdSlab *slab, int64_t begin, int64_t end) {
  const Level &level = level_of(layer->level);
  Job job{};
  describe_slabs(job, *basis, *layer, begin, end);
  const auto analyse = pack_panels(*basis, basis->analyse_matrix, level);
  job.scratch_size = tile_size(job);
  job.scratch = workspace.reserve(layer->threads * job.scratch_size);
  divide(job, layer->held);
  std::atomic<int64_t> counter(0);
  job.analyse_panels = analyse.data();
  job.slab = slab;
  job.input = input;
  job.counters = &counter;
  run(job, level.analyse, layer->threads);
}

// ... then make planes [begin, end) of the result, after the products of the planes of cells that were analysed since.
void shd_combine(const ShdBasis *basis, const ShdLayer *layer, int64_t begin, int64_t end, int64_t cells_begin,
                 int64_t cells_end, const float *bias, int relu, float *output) {
  Job job{};
  describe_slabs(job, *basis, *layer, begin, end);
  job.cells.begin = cells_begin;
  job.cells.end = cells_end;
  evaluate(job, bias, relu, output);
}

// Gradients with respect to the inputs (null entries are skipped) and to the weights, from that of the output.
void shd_backward(const ShdBasis *basis, const ShdLayer *layer, const float *const *inputs, const float *output_gradient,
                  float *const *input_gradients, float *gradient_sph, float *gradient_spa) {
  const Level &level = level_of(layer->level);
  const int channels = channels_of(*layer);
  const int out = layer->out_channels, order = basis->order, shells = layer->weight_spa ? kShells : 0;
  Job job{};
  describe(job, *basis, *layer, out + channels);
  std::fill_n(gradient_sph, int64_t(out) * channels * order, 0.0f);
  if (shells) std::fill_n(gradient_spa, int64_t(out) * channels * shells, 0.0f);
  if (job.planes * job.plane_voxels == 0) return;
  // Both orders of the weights: forward (out innermost) to contract gradients, backward (in innermost) to apply them.
  auto sph = pack_weights(layer->weight_sph, out, channels, order, true, level.width);
  auto spa = pack_weights(layer->weight_spa, out, channels, kShells, true, level.width);
  auto sph_back = pack_weights(layer->weight_sph, out, channels, order, false, level.width);
  auto spa_back = pack_weights(layer->weight_spa, out, channels, kShells, false, level.width);
  const int64_t sph_size = sph.size(), spa_size = spa.size();
  sph.insert(sph.end(), sph_back.begin(), sph_back.end());
  spa.insert(spa.end(), spa_back.begin(), spa_back.end());
  sph.resize(sph.size() + 2 * level.width); // the last tile of an input may read past its channels
  spa.resize(spa.size() + 2 * level.width);
  const int64_t expansion = round_up(basis->vertices * job.ring * job.plane_voxels * out, 16);
  const int64_t input_expansion = round_up(basis->vertices * job.group * job.plane_voxels * channels, 16);
  job.scratch_size = tile_size(job) + neighbours_size(job, out) + gradient_size(job) + weights_size(job, out, channels) +
                     (kShells - 1) * (sum_size(job, out) + 16);
  job.scratch_size = round_up(job.scratch_size + 5 * 16, 16);
  float *free = workspace.reserve(expansion + input_expansion + layer->threads * job.scratch_size);
  job.expansion = take(free, expansion);
  job.input_expansion = take(free, input_expansion);
  job.scratch = free;
  std::vector<float> sums_sph(sph_size * layer->threads), sums_spa(spa_size * layer->threads);
  job.inputs = inputs;
  job.output_gradient = output_gradient;
  job.input_gradients = input_gradients;
  job.sph = sph.data();
  job.spa = spa.data();
  job.gradient_sph = sums_sph.data();
  job.gradient_spa = sums_spa.data();
  run_groups(job, level.backward);
  const int64_t padded = round_up(out, level.width);
  for (int thread = 0; thread < layer->threads; ++thread)
    for (int o = 0; o < out; ++o)
      for (int i = 0; i < channels; ++i) {
        for (int k = 0; k < order; ++k)
          gradient_sph[(int64_t(o) * channels + i) * order + k] +=
              sums_sph[thread * sph_size + (int64_t(k) * channels + i) * padded + o];
        for (int d = 0; d < shells; ++d)
          gradient_spa[(int64_t(o) * channels + i) * shells + d] +=
              sums_spa[thread * spa_size + (int64_t(d) * channels + i) * padded + o];
      }
}

}
