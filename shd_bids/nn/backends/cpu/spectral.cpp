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
// Portable C++17 with the vector extension of GCC and Clang. The file includes itself once per instruction set; the best one
// the processor has is chosen at run time. No dependency, plain C interface.

#ifndef SHD_PASS

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include <sys/mman.h>

#if defined(__clang__)
#pragma clang fp contract(fast)
#endif

extern "C" {

// Eigenbasis in factored form (see shd_bids.sphere.symmetry), with the scale of S moved into the block matrices.
struct ShdBasis {
  int32_t vertices, distinct, order, blocks;
  const int32_t *size, *copies;                 // [blocks]
  const int32_t *analyse_start, *analyse_index; // rows of S^T, entries +-1
  const float *analyse_sign;
  const int32_t *synthesise_start, *synthesise_index; // rows of S
  const float *synthesise_sign;
  const float *analyse_matrix, *synthesise_matrix; // per block, row-major (size, size), out x in
  const float *terms;                              // [distinct][order]
};

struct ShdShape {
  int64_t batch, x, y, z;
};

// One layer. Inputs act as concatenated along channels. A null `weight_spa` means no spatial kernel.
struct ShdLayer {
  ShdShape shape;
  int32_t inputs, out_channels;
  const int32_t *in_channels; // [inputs]
  const float *weight_sph;    // [out][in][order]
  const float *weight_spa;    // [out][in][4]
  int32_t threads, level;     // level: instruction set, see shd_best_level
  int64_t cache_bytes;        // size of the expansion held at once, at most
  // Marks, [planes][y z], of a volume whose planes come a few at a time: voxels whose result matters, all voxels they depend on
  // (the others are left as they are), and those whose input is not zero. Null: all.
  const uint8_t *wanted, *read, *inside;
  // Forward only: the last input lies on cells of 2 x 2 x 2 voxels and on a coarser grid, of which each vertex copies one, and
  // is read as if it were copied to all of them. With the marks of the cells. Null: it is like the others.
  const int64_t *parent;
  const uint8_t *read_cells, *inside_cells;
  // Of a volume whose planes come a few at a time, what stays from call to call: rings of so many analysed planes of each input,
  // [vertex][ring][y z][channel], and in that of cells also of products, [vertex][ring][4][y z][out].
  float *held;
  int64_t ring, cells_ring;
};

// Planes of an input that came, in a rectangle of so many lines and voxels of a line, of which the layer's begins at (low, left).
struct ShdSlab {
  const float *data; // [vertex][planes][lines][line][channel]
  int64_t first, planes, lines, line, low, left;
};
}

namespace {

constexpr int kShells = 4;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Threads of one call, meeting between phases. Spinning is short since phases last milliseconds; then the core is given away.
class Barrier {
public:
  explicit Barrier(int members) : members_(members) {}
  void wait() {
    if (members_ == 1) return;
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin)
      if (spin > 1000) std::this_thread::yield();
  }

private:
  const int members_;
  std::atomic<int> arrived_{0}, round_{0};
};

// Input on cells that its voxels copy, and the ring of those of its planes that are worked on.
struct Cells {
  int channels;
  int64_t ring, planes, y, z, begin, end; // from begin to end: planes analysed since the last products
  float *expansion, *products; // of analysed planes; of their products with the weights, [mode][plane][4][cell][out]
};

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

inline float *take(float *&free, int64_t size) {
  float *taken = free;
  free += round_up(size, 16);
  return taken;
}

// Everything the threads of one call share.
struct Job {
  const ShdBasis *basis;
  const ShdLayer *layer;
  int64_t planes, plane_voxels, x; // planes of the whole call; voxels of one; planes of one batch element
  int64_t first, last;             // planes that are computed
  int64_t group, ring, halo;       // planes worked on at once; planes held; planes needed on each side
  int64_t span, lines;             // planes, and lines along z of each, that shells and product take at once
  int channels;                    // of all inputs together
  int fine, fine_channels;         // inputs that lie on voxels, and their channels
  Cells cells;                     // the other, if any
  const float *const *inputs;      // forward: x, or null if all is analysed; backward: x
  const ShdSlab *slab;             // analyse: what came, and of which input
  int input;
  float *const *input_gradients;   // backward; entries may be null
  const float *output_gradient;    // backward
  float *output;                   // forward
  const float *bias;
  bool relu;
  const float *analyse_panels, *synthesise_panels; // block matrices in panels of rows
  const float *sph, *spa;                          // weights with the vectorised channel innermost, padded
  const float *spa_cells;                          // forward: see combined_shells
  float *expansion;                                // ring of analysed planes (forward: inputs; backward: output gradient)
  float *input_expansion;                          // backward: inputs of the group
  float *gradient_sph, *gradient_spa;              // backward: per thread
  float *scratch;                                  // [thread][scratch_size]
  int64_t scratch_size;
  std::atomic<int64_t> *counters;                  // one per phase, for dynamic scheduling
  Barrier *barrier;
};

constexpr int kTile = 64;      // columns of a change of basis
constexpr int64_t kSlack = 32; // tiles may read one panel past the end
constexpr int64_t kBlock = 256; // voxels whose shell sums stay in cache until they are used
// Of a small layer's expansion no more is held than an eighth, as it would count; below the least, more is faster.
constexpr int64_t kHeldShare = 8, kLeastHeld = 24 << 20;

inline int64_t tile_size(const Job &job) { return 2 * int64_t(job.basis->vertices) * kTile; }
// Arrays used together are kept from starting at equal addresses modulo a page, where the processor takes a load for the
// store before it.
inline int64_t plane_stride(int64_t plane) { return round_up(plane, 16) + 5 * 16; }
inline int64_t sum_size(const Job &job, int channels) {
  return job.halo ? plane_stride(job.span * job.lines * job.layer->shape.z * channels) + kSlack : 0;
}
inline int64_t neighbours_size(const Job &job, int channels) {
  return job.halo ? plane_stride(job.layer->shape.z * channels) * 4 : 0;
}
inline int64_t gradient_size(const Job &job) {
  return int64_t(job.channels) * job.layer->out_channels * (job.halo ? kShells : 1) + kSlack;
}
inline int widest(const Job &job) { return *std::max_element(job.layer->in_channels, job.layer->in_channels + job.fine); }
inline int64_t weights_size(const Job &job, int rows, int columns) {
  return int64_t(rows) * (job.halo ? kShells : 1) * round_up(columns, kSlack);
}

// Weights of a mode for the input on cells: four matrices, each in panels of its own.
inline int64_t cell_matrix(const Job &job) { return job.cells.channels * round_up(job.layer->out_channels, kSlack); }
inline int64_t cell_line(const Job &job) { return plane_stride((job.cells.z + 2) * job.layer->out_channels); }
inline int64_t cell_lines_size(const Job &job) {
  return job.cells.channels ? 3 * cell_line(job) + 6 * plane_stride(job.layer->shape.z * job.layer->out_channels) : 0;
}

// One input: rows of `channels` for each vertex, plane and voxel of the plane, with the marks of those that are read.
struct Source {
  const float *data;
  int channels;
  int64_t stride, plane_voxels; // numbers of one vertex
  const uint8_t *read;
  const int64_t *parent; // row of each vertex, or null where it is its own
};

// Rows of `length` values, one after another.
struct Segment {
  const float *data;
  int64_t length;
};

// Elementwise work on rows of channels.
struct RowJob {
  int64_t rows;
  int channels;
  const float *y, *gradient, *scale, *shift, *centre, *offset, *slope;
  float *out;
};

// Sums over boxes: out[vertex][batch][x][y][z] takes vertices index[vertex][...] and voxels [start, end) along each axis.
struct BoxJob {
  int64_t out_vertices, batch, in_size[3], out_size[3];
  int channels, sources;
  const int64_t *index, *start[3], *end[3];
  float factor;
  const float *in;
  float *out;
};

} // namespace

#define SHD_PASS
#define SHD_JOIN2(a, b) a##b
#define SHD_JOIN(a, b) SHD_JOIN2(a, b)

#if defined(__x86_64__) && defined(__GNUC__)
#define SHD_LEVELS 3
#define SHD_NAME avx512
#define SHD_WIDTH 16
#define SHD_ROWS 12
#define SHD_TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")))
#include "spectral.cpp"
#undef SHD_NAME
#undef SHD_WIDTH
#undef SHD_ROWS
#undef SHD_TARGET
#define SHD_NAME avx2
#define SHD_WIDTH 8
#define SHD_ROWS 6
#define SHD_TARGET __attribute__((target("avx2,fma")))
#include "spectral.cpp"
#undef SHD_NAME
#undef SHD_WIDTH
#undef SHD_ROWS
#undef SHD_TARGET
#else
#define SHD_LEVELS 1
#endif
#define SHD_NAME generic
#define SHD_WIDTH 4
#if defined(__aarch64__)
#define SHD_ROWS 12
#else
#define SHD_ROWS 4
#endif
#define SHD_TARGET
#include "spectral.cpp"

namespace {

struct Level {
  int width, rows;
  void (*analyse)(const Job &, int), (*forward)(const Job &, int), (*backward)(const Job &, int);
  void (*moments)(const RowJob &, int64_t, int64_t, double *, double *);
  void (*gradient_sums)(const RowJob &, int64_t, int64_t, double *, double *);
  void (*rectify)(const RowJob &, int64_t, int64_t), (*rectify_gradient)(const RowJob &, int64_t, int64_t);
  void (*box_sum)(const BoxJob &, int64_t, int64_t);
};

#define SHD_ENTRY(name)                                                                                                        \
  {name::kWidth,  name::kRows,         name::analyse, name::forward,          name::backward,                                  \
   name::moments, name::gradient_sums, name::rectify, name::rectify_gradient, name::box_sum}
const Level kLevels[] = {
    SHD_ENTRY(generic),
#if SHD_LEVELS == 3
    SHD_ENTRY(avx2),
    SHD_ENTRY(avx512),
#endif
};

// Rows of each block matrix in panels, [panel][column][row of the panel], zero-padded: one cache line feeds a tile.
std::vector<float> pack_panels(const ShdBasis &basis, const float *matrix, int rows) {
  std::vector<float> packed;
  for (int block = 0; block < basis.blocks; ++block) {
    const int n = basis.size[block];
    for (int first = 0; first < n; first += rows)
      for (int column = 0; column < n; ++column)
        for (int row = first; row < first + rows; ++row) packed.push_back(row < n ? matrix[row * n + column] : 0.0f);
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

// Split [0, n) among threads; work(part, begin, end).
template <class Work> void split(int64_t n, int threads, const Work &work) {
  threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, n)));
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { work(t, n * t / threads, n * (t + 1) / threads); });
  work(0, 0, n / threads);
  for (auto &other : others) other.join();
}

} // namespace

extern "C" {

// 0: any processor, 1: AVX2 and FMA, 2: AVX-512.
int shd_best_level() {
#if SHD_LEVELS == 3
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// Digest of the source this was built from: the Python side refuses a library that is not of the source beside it.
#ifndef SHD_SOURCE
#define SHD_SOURCE ""
#endif
const char *shd_source() { return SHD_SOURCE; }

// Choose the blocks of shells and product: a rectangle of one plane, or whole planes.
static void cut(Job &job) {
  const ShdShape &shape = job.layer->shape;
  const int64_t voxels = std::max<int64_t>(job.plane_voxels, 1), lines = std::max<int64_t>(kBlock / std::max<int64_t>(shape.z, 1), 1);
  job.span = job.halo ? std::min(job.group, std::max<int64_t>(kBlock / voxels, 1)) : job.group;
  job.lines = job.span > 1 || !job.halo ? shape.y : std::min(shape.y, job.layer->parent ? round_up(lines, 2) : lines);
}

static void describe(Job &job, const ShdBasis &basis, const ShdLayer &layer, int cached_channels) {
  const ShdShape &shape = layer.shape;
  job.basis = &basis;
  job.layer = &layer;
  job.planes = shape.batch * shape.x;
  job.plane_voxels = shape.y * shape.z;
  job.x = shape.x;
  job.last = job.planes;
  job.halo = layer.weight_spa ? 1 : 0;
  job.channels = 0;
  for (int j = 0; j < layer.inputs; ++j) job.channels += layer.in_channels[j];
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
static void describe_slabs(Job &job, const ShdBasis &basis, const ShdLayer &layer, int64_t first, int64_t last) {
  describe(job, basis, layer, 1);
  job.first = first;
  job.last = last;
  job.group = last - first;
  job.ring = layer.ring;
  job.cells.ring = layer.cells_ring;
  cut(job);
}

// Numbers that stay from one group of planes to the next, and where they lie.
static int64_t held_size(const Job &job) {
  const int64_t cells = job.cells.ring * job.cells.y * job.cells.z;
  return job.basis->vertices * (job.ring * job.plane_voxels * job.fine_channels +
                                cells * (job.cells.channels + kShells * job.layer->out_channels));
}

static void divide(Job &job, float *held) {
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

// Make the result of what is analysed, or of job.inputs, from job.first to job.last.
static void evaluate(Job &job, const float *bias, int relu, float *output) {
  const ShdBasis *basis = job.basis;
  const ShdLayer *layer = job.layer;
  const Level &level = kLevels[layer->level];
  const int out = layer->out_channels, on_cells = job.cells.channels;
  const auto analyse = pack_panels(*basis, basis->analyse_matrix, level.rows);
  const auto synthesise = pack_panels(*basis, basis->synthesise_matrix, level.rows);
  const auto sph = pack_weights(layer->weight_sph, out, job.channels, basis->order, true, level.width);
  const auto spa = pack_weights(layer->weight_spa, out, job.channels, kShells, true, level.width);
  const auto combined = combined_shells(layer->weight_spa, on_cells ? int64_t(out) * job.channels : 0);
  const auto spa_cells = pack_weights(on_cells ? combined.data() : nullptr, out, job.channels, kShells, true, level.width);
  job.scratch_size = tile_size(job) + neighbours_size(job, widest(job)) + weights_size(job, job.fine_channels, out) +
                     kShells * cell_matrix(job) + cell_lines_size(job);
  for (int j = 0; j < job.fine; ++j) job.scratch_size += (kShells - 1) * (sum_size(job, layer->in_channels[j]) + 16);
  job.scratch_size = round_up(job.scratch_size + 6 * 16, 16);
  const int64_t held = layer->held ? 0 : round_up(held_size(job), 16);
  float *free = workspace.reserve(held + layer->threads * job.scratch_size);
  divide(job, layer->held ? layer->held : free);
  job.scratch = free + held;
  const int64_t phases = 3 * ((job.last - job.first + job.group - 1) / job.group);
  const std::unique_ptr<std::atomic<int64_t>[]> counters(new std::atomic<int64_t>[phases]());
  Barrier barrier(layer->threads);
  job.output = output;
  job.bias = bias;
  job.relu = relu;
  job.analyse_panels = analyse.data();
  job.synthesise_panels = synthesise.data();
  job.sph = sph.data();
  job.spa = spa.data();
  job.spa_cells = spa_cells.data();
  job.counters = counters.get();
  job.barrier = &barrier;
  run(job, level.forward, layer->threads);
  workspace.trim();
}

// out[V][planes][voxels][O] = layer(inputs) + bias, rectified where asked.
void shd_forward(const ShdBasis *basis, const ShdLayer *layer, const float *const *inputs, const float *bias, int relu,
                 float *output) {
  int channels = 0;
  for (int j = 0; j < layer->inputs; ++j) channels += layer->in_channels[j];
  const int out = layer->out_channels, on_cells = layer->parent ? layer->in_channels[layer->inputs - 1] : 0;
  Job job{};
  // A plane of cells is a quarter of one of voxels, and they are half as many.
  describe(job, *basis, *layer, channels - on_cells + (on_cells ? (on_cells + kShells * out) / 8 : 0));
  job.inputs = inputs;
  if (job.group * job.plane_voxels > 0) evaluate(job, bias, relu, output);
}

// The same a few planes at a time. First analyse planes [begin, end) of one input, of a slab that came ...
void shd_analyse(const ShdBasis *basis, const ShdLayer *layer, int input, const ShdSlab *slab, int64_t begin, int64_t end) {
  const Level &level = kLevels[layer->level];
  Job job{};
  describe_slabs(job, *basis, *layer, begin, end);
  const auto analyse = pack_panels(*basis, basis->analyse_matrix, level.rows);
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
  const Level &level = kLevels[layer->level];
  int channels = 0;
  for (int j = 0; j < layer->inputs; ++j) channels += layer->in_channels[j];
  const int out = layer->out_channels, order = basis->order, shells = layer->weight_spa ? kShells : 0;
  Job job{};
  describe(job, *basis, *layer, out + channels);
  std::fill_n(gradient_sph, int64_t(out) * channels * order, 0.0f);
  if (shells) std::fill_n(gradient_spa, int64_t(out) * channels * shells, 0.0f);
  if (job.planes * job.plane_voxels == 0) return;
  const auto analyse = pack_panels(*basis, basis->analyse_matrix, level.rows);
  const auto synthesise = pack_panels(*basis, basis->synthesise_matrix, level.rows);
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
  const int64_t phases = 3 * ((job.planes + job.group - 1) / job.group);
  const std::unique_ptr<std::atomic<int64_t>[]> counters(new std::atomic<int64_t>[phases]());
  Barrier barrier(layer->threads);
  job.inputs = inputs;
  job.output_gradient = output_gradient;
  job.input_gradients = input_gradients;
  job.analyse_panels = analyse.data();
  job.synthesise_panels = synthesise.data();
  job.sph = sph.data();
  job.spa = spa.data();
  job.gradient_sph = sums_sph.data();
  job.gradient_spa = sums_spa.data();
  job.counters = counters.get();
  job.barrier = &barrier;
  run(job, level.backward, layer->threads);
  workspace.trim();
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

// Mean and biased variance of each channel of y[rows][channels].
void shd_moments(int64_t rows, int channels, const float *y, double *mean, double *variance, int threads, int level) {
  RowJob job{};
  job.rows = rows;
  job.channels = channels;
  job.y = y;
  std::vector<double> parts(2 * int64_t(channels) * threads);
  std::vector<int64_t> counts(threads);
  split(rows, threads, [&](int part, int64_t begin, int64_t end) {
    counts[part] = end - begin;
    kLevels[level].moments(job, begin, end, &parts[2 * part * channels], &parts[(2 * part + 1) * channels]);
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
  RowJob job{};
  job.channels = channels;
  job.y = y;
  job.scale = scale;
  job.shift = shift;
  job.out = out;
  split(rows, threads, [&](int, int64_t begin, int64_t end) { kLevels[level].rectify(job, begin, end); });
}

// Per channel: sum of the gradient where y scale + shift > 0, and of that times (y - centre).
void shd_gradient_sums(int64_t rows, int channels, const float *gradient, const float *y, const float *scale,
                       const float *shift, const float *centre, double *plain, double *weighted, int threads, int level) {
  RowJob job{};
  job.channels = channels;
  job.gradient = gradient;
  job.y = y;
  job.scale = scale;
  job.shift = shift;
  job.centre = centre;
  std::vector<double> parts(2 * int64_t(channels) * threads);
  split(rows, threads, [&](int part, int64_t begin, int64_t end) {
    kLevels[level].gradient_sums(job, begin, end, &parts[2 * part * channels], &parts[(2 * part + 1) * channels]);
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
  RowJob job{};
  job.channels = channels;
  job.gradient = gradient;
  job.y = y;
  job.scale = scale;
  job.shift = shift;
  job.offset = offset;
  job.slope = slope;
  job.out = out;
  split(rows, threads, [&](int, int64_t begin, int64_t end) { kLevels[level].rectify_gradient(job, begin, end); });
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
  split(out_vertices, threads, [&](int, int64_t begin, int64_t end) { kLevels[level].box_sum(job, begin, end); });
}
}

#else // one pass per instruction set

namespace {
namespace SHD_NAME {

constexpr int kWidth = SHD_WIDTH, kRows = SHD_ROWS;
constexpr int kPanel = 2 * kWidth; // columns of a register tile

typedef float Vec __attribute__((vector_size(SHD_WIDTH * 4), aligned(4), may_alias));
#define SHD_LOAD(p) (*reinterpret_cast<const Vec *>(p))
#define SHD_STORE(p, v) (*reinterpret_cast<Vec *>(p) = (v))
#define SHD_UNROLL _Pragma("GCC unroll 12") // else sums go through memory before and after a tile's loop

// c[M][NV * kWidth] (+)= sum, from registers.
template <int M, int NV> SHD_TARGET inline void put(const Vec (&sum)[M][NV], float *c, int64_t c_stride, int valid, bool add) {
  SHD_UNROLL
  for (int m = 0; m < M; ++m, c += c_stride) {
    if (valid >= NV * kWidth) {
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) SHD_STORE(c + v * kWidth, add ? SHD_LOAD(c + v * kWidth) + sum[m][v] : sum[m][v]);
    } else {
      float spilled[NV * kWidth];
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) SHD_STORE(spilled + v * kWidth, sum[m][v]);
      for (int n = 0; n < valid; ++n) c[n] = add ? c[n] + spilled[n] : spilled[n];
    }
  }
}

// c = a b in registers, where the rows of `a` lie side by side: a[k][m].
template <int M, int NV>
SHD_TARGET void side_tile(const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t depth, float *c,
                          int64_t c_stride, int valid, bool add) {
  Vec sum[M][NV];
  SHD_UNROLL
  for (int m = 0; m < M; ++m) {
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) sum[m][v] = Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, a += stride, b += b_stride) {
    Vec w[NV];
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = SHD_LOAD(b + v * kWidth);
    SHD_UNROLL
    for (int m = 0; m < M; ++m) {
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) sum[m][v] += a[m] * w[v];
    }
  }
  put<M, NV>(sum, c, c_stride, valid, add);
}

// c = a b in registers, where each row of `a` is cut into segments that lie in arrays of their own.
template <int M, int NV>
SHD_TARGET void segment_tile(const Segment *segments, int count, int64_t row, const float *b, float *c, int64_t c_stride,
                             int valid) {
  Vec sum[M][NV];
  SHD_UNROLL
  for (int m = 0; m < M; ++m) {
    SHD_UNROLL
    for (int v = 0; v < NV; ++v) sum[m][v] = Vec{};
  }
  for (int s = 0; s < count; ++s) {
    const int64_t length = segments[s].length;
    const float *rows[(M + 2) / 3]; // three rows from each: more pointers than that do not fit the registers
    for (int m = 0; m < M; m += 3) rows[m / 3] = segments[s].data + (row + m) * length;
    for (int64_t k = 0; k < length; ++k, b += NV * kWidth) {
      Vec w[NV];
      SHD_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = SHD_LOAD(b + v * kWidth);
      SHD_UNROLL
      for (int m = 0; m < M; ++m) {
        const float factor = rows[m / 3][m % 3 * length + k];
        SHD_UNROLL
        for (int v = 0; v < NV; ++v) sum[m][v] += factor * w[v];
      }
    }
  }
  put<M, NV>(sum, c, c_stride, valid, false);
}

template <int M>
SHD_TARGET void side_rows(int rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t depth, float *c,
                          int64_t c_stride, int valid, bool add) {
  if (rows == M) {
    if (valid > kWidth)
      side_tile<M, 2>(a, stride, b, b_stride, depth, c, c_stride, valid, add);
    else
      side_tile<M, 1>(a, stride, b, b_stride, depth, c, c_stride, valid, add);
  } else if constexpr (M > 1) {
    side_rows<M - 1>(rows, a, stride, b, b_stride, depth, c, c_stride, valid, add);
  }
}

template <int M>
SHD_TARGET void segment_rows(int rows, const Segment *segments, int count, int64_t row, const float *b, float *c,
                             int64_t c_stride, int valid) {
  if (rows == M) {
    if (valid > kWidth)
      segment_tile<M, 2>(segments, count, row, b, c, c_stride, valid);
    else
      segment_tile<M, 1>(segments, count, row, b, c, c_stride, valid);
  } else if constexpr (M > 1) {
    segment_rows<M - 1>(rows, segments, count, row, b, c, c_stride, valid);
  }
}

// Rows are cut into register tiles of nearly equal height.
SHD_TARGET void side_product(int64_t rows, const float *a, int64_t stride, const float *b, int64_t b_stride, int64_t depth,
                             float *c, int64_t c_stride, int valid, bool add) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    side_rows<kRows>(int(last - first), a + first, stride, b, b_stride, depth, c + first * c_stride, c_stride, valid, add);
  }
}

// Rows [begin, end) of c[][columns] = those of the segments times weights in panels of columns.
SHD_TARGET void multiply(int64_t begin, int64_t end, const Segment *segments, int count, int64_t depth, const float *panels,
                         int columns, float *c) {
  const int64_t rows = end - begin, tiles = (rows + kRows - 1) / kRows;
  for (int q = 0; q < columns; q += kPanel)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = begin + rows * t / tiles, last = begin + rows * (t + 1) / tiles;
      segment_rows<kRows>(int(last - first), segments, count, first, panels + q * depth, c + first * columns + q, columns,
                          std::min(kPanel, columns - q));
    }
}

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

// Each block of rows of y = its matrix times the same rows of x; rows of one copy lie `copies` apart.
SHD_TARGET void blocks(const ShdBasis &basis, const float *panels, const float *x, float *y, int64_t y_stride, int columns) {
  int first = 0;
  for (int block = 0; block < basis.blocks; ++block) {
    const int n = basis.size[block], copies = basis.copies[block];
    for (int row = 0; row < n; row += kRows, panels += int64_t(kRows) * n)
      for (int copy = 0; copy < copies; ++copy)
        for (int q = 0; q < columns; q += kPanel)
          side_rows<kRows>(std::min(kRows, n - row), panels, kRows, x + int64_t(first + copy) * kTile + q,
                                 int64_t(copies) * kTile, n, y + int64_t(first + row * copies + copy) * y_stride + q,
                                 copies * y_stride, std::min(kPanel, columns - q), false);
    first += n * copies;
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

// Lines [low, high) along z of planes [begin, end): a block, of which at most one of the two is a part of all there is. Of each
// line those voxels count that lie in [first, last).
struct Block {
  int64_t begin, end, low, high, first, last;
};

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
SHD_TARGET void shells_along(const Lines &x, int64_t line, int F, int f, float *s1, float *s2, float *s3) {
  typedef typename Channels::Value Value;
#define SHD_AT(p) (*reinterpret_cast<const Value *>(p))
#define SHD_PUT(p) (*reinterpret_cast<Value *>(p))
  Value here = SHD_AT(x.here + f), before{}, t_before{}, both_before{};
  Value t = SHD_AT(x.across + f) + (SHD_AT(x.above + f) + SHD_AT(x.below + f));
  Value both = SHD_AT(x.across_above + f) + SHD_AT(x.across_below + f);
  for (int64_t i = f; i < line; i += F) {
    Value after{}, t_after{}, both_after{};
    if (i + F < line) {
      const int64_t next = i + F;
      after = SHD_AT(x.here + next);
      t_after = SHD_AT(x.across + next) + (SHD_AT(x.above + next) + SHD_AT(x.below + next));
      both_after = SHD_AT(x.across_above + next) + SHD_AT(x.across_below + next);
    }
    SHD_PUT(s1 + i) = t + (before + after);
    SHD_PUT(s2 + i) = both + (t_before + t_after);
    SHD_PUT(s3 + i) = both_before + both_after;
    before = here;
    t_before = t;
    both_before = both;
    here = after;
    t = t_after;
    both = both_after;
  }
}
#undef SHD_AT
#undef SHD_PUT

// Shell sums 1 to 3 of a block of one mode, each into an array [voxel][F]; shell 0 is the ring itself. With A the sum of two
// neighbours along an axis: S1 = Ax + Ay + Az, S2 = Ax(Ay + Az) + AyAz, S3 = AxAyAz. Line after line, with three of Ax in cache.
SHD_TARGET void shells(const Job &job, const float *x, int F, const Block &block, float *const *sums, float *scratch) {
  const int64_t Y = job.layer->shape.y, Z = job.layer->shape.z, X = job.x, plane = job.plane_voxels * F, line = Z * F;
  // With a voxel more on each side, whose own sums lack a neighbour and do not count.
  const int64_t from = std::max<int64_t>(block.first - 1, 0), count = (std::min(block.last + 1, Z) - from) * F;
  float *across[3]; // of lines y - 1, y, y + 1
  for (float *&row : across) row = take(scratch, plane_stride(line));
  float *const zeros = take(scratch, plane_stride(line));
  add(count, nullptr, nullptr, zeros);
  x += from * F;
  int64_t done = from * F;
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
        shells_along<Many>(lines, count, F, f, sums[0] + done, sums[1] + done, sums[2] + done);
      for (; f < F; ++f) shells_along<One>(lines, count, F, f, sums[0] + done, sums[1] + done, sums[2] + done);
      done += line;
    }
  }
}

// The segments of one input (or gradient) of F channels for the planes of a block from `from` on.
SHD_TARGET int segments(const Job &job, const float *ring, int F, const Block &block, int64_t from, float *const *sums,
                        Segment *out) {
  const int64_t line = job.layer->shape.z * F;
  out[0] = {ring + (from % job.ring) * job.plane_voxels * F + block.low * line, F};
  if (!job.halo) return 1;
  for (int d = 1; d < kShells; ++d) out[d] = {sums[d - 1] + (from - block.begin) * (block.high - block.low) * line, F};
  return kShells;
}

// Weights of one mode for one input, in panels of columns [panel][shell, row][column]: sum_k T_k sph_k times spa_d.
// `sph`, `spa` are [term][rows of all][padded]; rows [row, row + rows) and columns [column, column + columns) are used.
// With `apart`, each shell has panels of its own, which lie so far apart.
SHD_TARGET void mode_weights(const Job &job, const float *terms, const float *sph, const float *spa, int64_t all_rows,
                             int64_t padded, int row, int rows, int column, int columns, float *out, int64_t row_offset,
                             int64_t depth, int64_t apart = 0) {
  const int order = job.basis->order;
  for (int q = 0; q < columns; q += kWidth) {
    const int panel = q / kPanel, width = columns - panel * kPanel > kWidth ? kPanel : kWidth;
    float *target = out + int64_t(panel) * kPanel * depth + row_offset * width + q % kPanel;
    for (int i = 0; i < rows; ++i) {
      const int64_t at = int64_t(row + i) * padded + column + q, step = all_rows * padded;
      Vec filter = terms[0] * SHD_LOAD(sph + at);
      for (int k = 1; k < order; ++k) filter += terms[k] * SHD_LOAD(sph + k * step + at);
      if (!job.halo) {
        SHD_STORE(target + int64_t(i) * width, filter);
        continue;
      }
      const int64_t shell = apart ? apart : int64_t(rows) * width;
      for (int d = 0; d < kShells; ++d) SHD_STORE(target + d * shell + i * width, filter * SHD_LOAD(spa + d * step + at));
    }
  }
}

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

// Row of the first copy of a distinct mode, and how many follow it.
inline int mode_row(const ShdBasis &basis, int64_t mode, int &copies) {
  int row = 0;
  for (int block = 0;; ++block) {
    copies = basis.copies[block];
    if (mode < basis.size[block]) return row + int(mode) * copies;
    row += basis.size[block] * copies;
    mode -= basis.size[block];
  }
}

// Products of the input on cells with the four combined weights of one mode, for planes [begin, end) of cells.
SHD_TARGET void multiply_cells(const Job &job, const float *expansion, int64_t begin, int64_t end, const float *weights,
                               float *products) {
  const Cells &cells = job.cells;
  const int out = job.layer->out_channels;
  const int64_t plane = cells.y * cells.z;
  for (int64_t p = begin; p < end; ++p) {
    const Segment values{expansion + p % cells.ring * plane * cells.channels, cells.channels};
    const uint8_t *const read = job.layer->read_cells ? job.layer->read_cells + p * plane : nullptr;
    for (int64_t start = skip(read, 0, plane, 0), stop; start < plane; start = skip(read, stop, plane, 0)) {
      stop = skip(read, start, plane, 1);
      for (int n = 0; n < kShells; ++n)
        multiply(start, stop, &values, 1, cells.channels, weights + n * cell_matrix(job), out,
                 products + (p % cells.ring * kShells + n) * plane * out);
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
}

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
  std::vector<Segment> rows(kShells * job.fine);
  std::vector<Block> blocks; // those of a group that hold a voxel whose result matters
  std::vector<float *> sums;
  for (int j = 0; j < job.fine; ++j)
    for (int d = 1; d < kShells; ++d) sums.push_back(take(free, sum_size(job, layer.in_channels[j])));
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
      if (cells_begin < cells_end)
        mode_weights(job, terms, job.sph, job.spa_cells, job.channels, round_up(out, kWidth), job.fine_channels, cells.channels,
                     0, out, cell_weights, 0, cells.channels, cell_matrix(job));
      for (int copy = 0; copy < copies; ++copy) {
        float *const products = cells.products + (row + copy) * cells_voxels * kShells * out;
        multiply_cells(job, cells.expansion + (row + copy) * cells_voxels * cells.channels, cells_begin, cells_end,
                       cell_weights, products);
        for (const Block &block : blocks) {
          const float *ring = job.expansion;
          for (int j = 0; j < job.fine; ++j) {
            const int64_t stride = ring_voxels * layer.in_channels[j];
            if (job.halo)
              shells(job, ring + (row + copy) * stride, layer.in_channels[j], block, &sums[(kShells - 1) * j], neighbours);
            ring += basis.vertices * stride;
          }
          for (int64_t from = block.begin, to; from < block.end; from = to) {
            to = std::min(block.end, (from / job.ring + 1) * job.ring); // the ring wraps there
            int count = 0;
            ring = job.expansion;
            for (int j = 0; j < job.fine; ++j) {
              const int64_t stride = ring_voxels * layer.in_channels[j];
              count += segments(job, ring + (row + copy) * stride, layer.in_channels[j], block, from, &sums[(kShells - 1) * j],
                                &rows[count]);
              ring += basis.vertices * stride;
            }
            const int64_t first = (from - job.first) * job.plane_voxels + block.low * layer.shape.z;
            const int64_t voxels = (to - from) * (block.high - block.low) * layer.shape.z;
            const uint8_t *const wanted = layer.wanted ? layer.wanted + first + job.first * job.plane_voxels : nullptr;
            float *const result = job.output + ((row + copy) * planes * job.plane_voxels + first) * out;
            for (int64_t start = skip(wanted, 0, voxels, 0), stop; start < voxels; start = skip(wanted, stop, voxels, 0)) {
              stop = skip(wanted, start, voxels, 1);
              multiply(start, stop, rows.data(), count, depth, weights, out, result);
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
  float *sums[kShells - 1];
  for (float *&sum : sums) sum = take(free, sum_size(job, out));
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

// Batch normalisation and ReLU over rows of channels, and box sums for pooling: all limited by memory, so one pass each.

// Mean and sum of squared deviations of each channel over rows, in blocks that stay in cache, merged in double
// (Chan, Golub and LeVeque 1979): exact to rounding however large the mean.
SHD_TARGET void moments(const RowJob &job, int64_t begin, int64_t end, double *mean, double *squares) {
  const int F = job.channels;
  constexpr int64_t kBlock = 64;
  const std::unique_ptr<float[]> block(new float[2 * F]);
  float *m = block.get(), *s = m + F;
  double count = 0;
  for (int f = 0; f < F; ++f) mean[f] = squares[f] = 0;
  for (int64_t row = begin; row < end; row += kBlock) {
    const int64_t n = std::min(kBlock, end - row);
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
  constexpr int64_t kBlock = 64;
  for (int f = 0; f < F; ++f) plain[f] = weighted[f] = 0;
  for (int64_t row = begin; row < end; row += kBlock) {
    const int64_t n = std::min(kBlock, end - row);
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

#undef SHD_LOAD
#undef SHD_STORE
#undef SHD_UNROLL

} // namespace SHD_NAME
} // namespace

#endif
