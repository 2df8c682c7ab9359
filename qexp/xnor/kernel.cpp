// The packed product on a CPU, exclusive or and popcount on bits, or bytes times signs: columns of the weights lie side
// by side, so that no sum is taken across a register. kernel.py calls what stands under `extern "C"`, and says the shapes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define AVX2 __attribute__((target("avx2")))
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

// A convolution's geometry; a linear layer is one of 1 x 1 pixels.
struct Geometry {
  int64_t images, height, width;           // of the input
  int64_t out_height, out_width;           // of the output
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, dilation_height, dilation_width;

  int64_t pixels() const { return images * height * width; }
  int64_t positions() const { return out_height * out_width; }
  int64_t rows() const { return images * positions(); }
  int64_t taps() const { return kernel_height * kernel_width; }
};

// One product. X[row, column] is the sum over planes i, j of 2^(i + j) popcount(activation plane i ^ weight plane j)
// or, of bytes, minus the sum of byte times sign. The accumulator is base[row % base_rows, column] - 2 X.
struct Problem {
  Geometry geometry;
  const uint8_t* activations;    // [planes][pixels][unit bytes]; outside the image every bit counts as 0
  int64_t activation_planes, unit;  // unit: bytes of one pixel, a multiple of 8 unless `bytes`
  const uint64_t* weights;       // [planes][blocks of 64 columns][2 halves][words][32 columns]
  int64_t weight_planes, columns;
  bool bytes;                    // activations are bytes, weights masks: [blocks of 64][4 groups of 16][quads]
  const int32_t* base;
  int64_t base_rows;
  int32_t* sums;                 // [rows][columns], or null where bits are wanted
  uint64_t* bits;                // [rows][words of 64 columns]: accumulator >= threshold, turned where `flips` has a 1
  const int32_t* thresholds;     // [columns padded to 64]
  const uint64_t* flips;         // [words of 64 columns]
};

enum class Path { portable = 0, avx2 = 1, avx512 = 2 };

constexpr int64_t kRows = 60;     // of a tile: a multiple of the micro kernel's rows
constexpr int64_t kColumns = 64;  // of a tile: one word of packed output
constexpr int kMicroRows = 6;     // 6 x 4 accumulators, 4 weights and a row's word fill 29 of 32 registers
constexpr int64_t kDepth = 256;   // words of a row at once: 32 columns of weights then stay in the second cache

// GNU OpenMP's parallel region: function(data) on so many threads.
using Team = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
Team team = nullptr;

// Runs task(0) ... task(count - 1) on up to `threads` threads, in whatever order: on those that torch computes with,
// where they are known. They wait for more in a loop for a while after every work of theirs, and others that began
// then would share the processors with them. All are asked, be there too few tasks: GNU's OpenMP ends those that a
// smaller team leaves out, and begins new ones for torch's next work (pytorch issue 32008).
template <typename Task>
void parallel(int64_t count, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t index; (index = next.fetch_add(1)) < count;) task(index);
  };
  if (count <= 1 || threads <= 1) return work();
  if (team != nullptr) {
    team([](void* data) { (*static_cast<decltype(work)*>(data))(); }, &work, unsigned(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  try {
    for (int64_t other = 1; other < std::min<int64_t>(threads, count); ++other) others.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads for this process: those that began, and this one, do the work.
  }
  work();
  for (auto& other : others) other.join();
}

// Adds 2^shift times the mismatches of `rows` rows with the 64 columns of a block to the tile.
using Counter = void (*)(const uint64_t* rows, int64_t stride, int64_t count, const uint64_t* block, int64_t words,
                         int64_t depth, int shift, int64_t groups, int32_t* tile);

// Weights of a block: [2 halves][words][4 groups][8 columns]; the first word of a group.
INLINE const uint64_t* group_of(const uint64_t* block, int64_t group, int64_t words) {
  return block + group / 4 * words * 32 + group % 4 * 8;
}

template <int kCount>
INLINE void count_portable_rows(const uint64_t* rows, int64_t stride, const uint64_t* group, int64_t depth, int shift,
                                int32_t* tile) {
  for (int row = 0; row < kCount; ++row) {
    uint64_t sums[8] = {};
    for (int64_t word = 0; word < depth; ++word)
      for (int column = 0; column < 8; ++column)
        sums[column] += __builtin_popcountll(rows[row * stride + word] ^ group[word * 32 + column]);
    for (int column = 0; column < 8; ++column) tile[row * kColumns + column] += int32_t(sums[column] << shift);
  }
}

void count_portable(const uint64_t* rows, int64_t stride, int64_t count, const uint64_t* block, int64_t words,
                    int64_t depth, int shift, int64_t groups, int32_t* tile) {
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t row = 0; row < count; ++row)
      count_portable_rows<1>(rows + row * stride, stride, group_of(block, group, words), depth, shift,
                             tile + row * kColumns + group * 8);
}

#if defined(__x86_64__)

// Popcount of each byte by two look-ups of four bits (Mula), summed to 64-bit lanes.
AVX2 INLINE __m256i popcount_avx2(__m256i x) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i below = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
  const __m256i above = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
  return _mm256_add_epi8(below, above);
}

template <int kCount>
AVX2 INLINE void count_avx2_rows(const uint64_t* rows, int64_t stride, const uint64_t* group, int64_t depth, int shift,
                                 int32_t* tile) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i sums[kCount][2];
  for (auto& row : sums) row[0] = row[1] = zero;
  for (int64_t first = 0; first < depth; first += 31) {  // a byte holds the counts of 31 words
    const int64_t end = std::min(depth, first + 31);
    __m256i bytes[kCount][2];
    for (auto& row : bytes) row[0] = row[1] = zero;
    for (int64_t word = first; word < end; ++word)
      for (int half = 0; half < 2; ++half) {
        const __m256i weight = _mm256_loadu_si256((const __m256i*)(group + word * 32 + half * 4));
        for (int row = 0; row < kCount; ++row) {
          const __m256i value = _mm256_set1_epi64x((long long)rows[row * stride + word]);
          bytes[row][half] = _mm256_add_epi8(bytes[row][half], popcount_avx2(_mm256_xor_si256(value, weight)));
        }
      }
    for (int row = 0; row < kCount; ++row)
      for (int half = 0; half < 2; ++half)
        sums[row][half] = _mm256_add_epi64(sums[row][half], _mm256_sad_epu8(bytes[row][half], zero));
  }
  for (int row = 0; row < kCount; ++row) {
    uint64_t lanes[8];
    for (int half = 0; half < 2; ++half) _mm256_storeu_si256((__m256i*)(lanes + half * 4), sums[row][half]);
    for (int column = 0; column < 8; ++column) tile[row * kColumns + column] += int32_t(lanes[column] << shift);
  }
}

AVX2 void count_avx2(const uint64_t* rows, int64_t stride, int64_t count, const uint64_t* block, int64_t words,
                     int64_t depth, int shift, int64_t groups, int32_t* tile) {
  for (int64_t group = 0; group < groups; ++group) {
    const uint64_t* weights = group_of(block, group, words);
    int64_t row = 0;
    for (; row + 2 <= count; row += 2)
      count_avx2_rows<2>(rows + row * stride, stride, weights, depth, shift, tile + row * kColumns + group * 8);
    for (; row < count; ++row)
      count_avx2_rows<1>(rows + row * stride, stride, weights, depth, shift, tile + row * kColumns + group * 8);
  }
}

template <int kCount>
AVX512 INLINE void count_avx512_rows(const uint64_t* rows, int64_t stride, const uint64_t* half, int64_t depth,
                                     int shift, int32_t* tile) {
  __m512i sums[kCount][4];
#pragma GCC unroll 6
  for (int row = 0; row < kCount; ++row)
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) sums[row][group] = _mm512_setzero_si512();
  for (int64_t word = 0; word < depth; ++word) {
    __m512i weights[4];
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) weights[group] = _mm512_loadu_si512(half + word * 32 + group * 8);
#pragma GCC unroll 6
    for (int row = 0; row < kCount; ++row) {
      const __m512i value = _mm512_set1_epi64((long long)rows[row * stride + word]);
#pragma GCC unroll 4
      for (int group = 0; group < 4; ++group)
        sums[row][group] =
            _mm512_add_epi64(sums[row][group], _mm512_popcnt_epi64(_mm512_xor_si512(value, weights[group])));
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kCount; ++row)
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) {
      __m256i* place = (__m256i*)(tile + row * kColumns + group * 8);
      const __m512i scaled = _mm512_slli_epi64(sums[row][group], (unsigned)shift);
      _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), _mm512_cvtepi64_epi32(scaled)));
    }
}

AVX512 void count_avx512(const uint64_t* rows, int64_t stride, int64_t count, const uint64_t* block, int64_t words,
                         int64_t depth, int shift, int64_t groups, int32_t* tile) {
  for (int64_t group = 0; group < groups; group += 4) {
    const uint64_t* half = group_of(block, group, words);
    int64_t row = 0;
    for (; row + kMicroRows <= count; row += kMicroRows)
      count_avx512_rows<kMicroRows>(rows + row * stride, stride, half, depth, shift, tile + row * kColumns + group * 8);
    for (; row < count; ++row)
      count_avx512_rows<1>(rows + row * stride, stride, half, depth, shift, tile + row * kColumns + group * 8);
  }
}

// Subtracts byte times sign. Masks: [4 groups of 16 columns][quads], bit 4 c + e of a mask is element e of column c.
template <int kCount>
VNNI INLINE void multiply_bytes_rows(const uint8_t* rows, int64_t stride, const uint64_t* masks, int64_t quads,
                                     int32_t* tile) {
  const __m512i plus = _mm512_set1_epi8(-1), minus = _mm512_set1_epi8(1);  // the negative: X is minus the sum
  __m512i sums[kCount][4];
#pragma GCC unroll 6
  for (int row = 0; row < kCount; ++row)
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) sums[row][group] = _mm512_setzero_si512();
  for (int64_t quad = 0; quad < quads; ++quad) {
    __m512i signs[4];
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group)
      signs[group] = _mm512_mask_blend_epi8(_cvtu64_mask64(masks[group * quads + quad]), minus, plus);
#pragma GCC unroll 6
    for (int row = 0; row < kCount; ++row) {
      int32_t four;
      std::memcpy(&four, rows + row * stride + quad * 4, 4);
      const __m512i value = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int group = 0; group < 4; ++group)
        sums[row][group] = _mm512_dpbusd_epi32(sums[row][group], value, signs[group]);
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kCount; ++row)
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group)
      _mm512_storeu_si512(tile + row * kColumns + group * 16, sums[row][group]);
}

VNNI void multiply_bytes(const uint8_t* rows, int64_t stride, int64_t count, const uint64_t* masks, int64_t quads,
                         int32_t* tile) {
  int64_t row = 0;
  for (; row + kMicroRows <= count; row += kMicroRows)
    multiply_bytes_rows<kMicroRows>(rows + row * stride, stride, masks, quads, tile + row * kColumns);
  for (; row < count; ++row)
    multiply_bytes_rows<1>(rows + row * stride, stride, masks, quads, tile + row * kColumns);
}

#endif

// Writes a row's accumulators, or the bits that say which of them reach their thresholds.
using Finisher = void (*)(const int32_t* tile, const int32_t* base, int64_t count, int32_t* sums);
using Comparer = uint64_t (*)(const int32_t* tile, const int32_t* base, int64_t count, const int32_t* thresholds);

INLINE void finish_body(const int32_t* tile, const int32_t* base, int64_t count, int32_t* sums) {
  for (int64_t column = 0; column < count; ++column) sums[column] = base[column] - 2 * tile[column];
}

INLINE uint64_t compare_body(const int32_t* tile, const int32_t* base, int64_t count, const int32_t* thresholds) {
  uint64_t bits = 0;
  for (int64_t column = 0; column < count; ++column)
    bits |= uint64_t(base[column] - 2 * tile[column] >= thresholds[column]) << column;
  return bits;
}

void finish_portable(const int32_t* tile, const int32_t* base, int64_t count, int32_t* sums) {
  finish_body(tile, base, count, sums);
}

uint64_t compare_portable(const int32_t* tile, const int32_t* base, int64_t count, const int32_t* thresholds) {
  return compare_body(tile, base, count, thresholds);
}

#if defined(__x86_64__)

AVX512 void finish_avx512(const int32_t* tile, const int32_t* base, int64_t count, int32_t* sums) {
  finish_body(tile, base, count, sums);
}

AVX512 uint64_t compare_avx512(const int32_t* tile, const int32_t* base, int64_t count, const int32_t* thresholds) {
  uint64_t bits = 0;
  for (int64_t column = 0; column < count; column += 16) {
    const __mmask16 here = (__mmask16)((1u << std::min<int64_t>(16, count - column)) - 1);
    const __m512i twice = _mm512_slli_epi32(_mm512_loadu_si512(tile + column), 1);
    const __m512i sum = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(here, base + column), twice);
    const __m512i least = _mm512_loadu_si512(thresholds + column);
    bits |= uint64_t(_mm512_mask_cmp_epi32_mask(here, sum, least, _MM_CMPINT_NLT)) << column;
  }
  return bits;
}

#endif

struct Instructions {
  Counter count;
  Finisher finish;
  Comparer compare;
};

Instructions instructions(Path path) {
#if defined(__x86_64__)
  if (path == Path::avx512) return {count_avx512, finish_avx512, compare_avx512};
  if (path == Path::avx2) return {count_avx2, finish_portable, compare_portable};
#endif
  return {count_portable, finish_portable, compare_portable};
}

// Copies what `count` output positions from `first` on see of one plane, zeros outside the image.
void gather(const Geometry& g, const uint8_t* plane, int64_t unit, int64_t first, int64_t count, int64_t stride,
            uint8_t* rows) {
  for (int64_t row = first; row < first + count; ++row, rows += stride) {
    const int64_t image = row / g.positions(), position = row % g.positions();
    const int64_t top = position / g.out_width * g.stride_height - g.pad_top;
    const int64_t left = position % g.out_width * g.stride_width - g.pad_left;
    uint8_t* to = rows;
    for (int64_t ky = 0; ky < g.kernel_height; ++ky)
      for (int64_t kx = 0; kx < g.kernel_width; ++kx, to += unit) {
        const int64_t y = top + ky * g.dilation_height, x = left + kx * g.dilation_width;
        if (y < 0 || y >= g.height || x < 0 || x >= g.width)
          std::memset(to, 0, size_t(unit));
        else
          std::memcpy(to, plane + ((image * g.height + y) * g.width + x) * unit, size_t(unit));
      }
  }
}

// A share of the output: some tiles of rows against some blocks of columns.
struct Worker {
  const Problem& p;
  const Instructions use;
  int64_t row_bytes;  // of one gathered row
  int64_t blocks;     // of 64 columns
  std::vector<uint64_t> gathered;

  Worker(const Problem& problem, Path path)
      : p(problem), use(instructions(path)), row_bytes((problem.geometry.taps() * problem.unit + 7) / 8 * 8),
        blocks((problem.columns + kColumns - 1) / kColumns) {
    // Rows whose pixels are whole outputs need no copy; of bytes they do, padded to quads.
    if (!in_place()) gathered.resize(size_t(p.activation_planes * kRows * row_bytes / 8));
  }

  bool in_place() const {
    const Geometry& g = p.geometry;
    return g.taps() == 1 && g.positions() == 1 && g.height == 1 && g.width == 1 && p.unit % 8 == 0;
  }

  const uint8_t* rows_of(int64_t plane, int64_t first, int64_t count) {
    const uint8_t* source = p.activations + plane * p.geometry.pixels() * p.unit;
    if (in_place()) return source + first * p.unit;
    uint8_t* to = (uint8_t*)gathered.data() + plane * kRows * row_bytes;
    gather(p.geometry, source, p.unit, first, count, row_bytes, to);
    return to;
  }

  void tile_of_bits(const std::vector<const uint8_t*>& planes, int64_t count, int64_t block, int32_t* tile) const {
    const int64_t words = row_bytes / 8;
    const int64_t groups = std::min<int64_t>(8, (p.columns - block * kColumns + 7) / 8);
    std::memset(tile, 0, size_t(count * kColumns) * sizeof(int32_t));
    for (int64_t j = 0; j < p.weight_planes; ++j) {
      const uint64_t* weights = p.weights + (j * blocks + block) * words * kColumns;
      for (int64_t word = 0; word < words; word += kDepth)
        for (int64_t i = 0; i < p.activation_planes; ++i)
          use.count((const uint64_t*)planes[size_t(i)] + word, words, count, weights + word * 32, words,
                    std::min(kDepth, words - word), int(i + j), groups, tile);
    }
  }

  void run(int64_t first, int64_t count, int64_t first_block, int64_t last_block) {
    alignas(64) int32_t tile[kRows * kColumns];
    std::vector<const uint8_t*> planes;
    for (int64_t plane = 0; plane < p.activation_planes; ++plane) planes.push_back(rows_of(plane, first, count));
    for (int64_t block = first_block; block < last_block; ++block) {
      if (!p.bytes) tile_of_bits(planes, count, block, tile);
#if defined(__x86_64__)
      const int64_t quads = (p.geometry.taps() * p.unit + 3) / 4;
      if (p.bytes) multiply_bytes(planes[0], row_bytes, count, p.weights + block * 4 * quads, quads, tile);
#endif
      write(tile, first, count, block);
    }
  }

  void write(const int32_t* tile, int64_t first, int64_t count, int64_t block) const {
    const int64_t column = block * kColumns, width = std::min(kColumns, p.columns - column);
    for (int64_t row = 0; row < count; ++row) {
      const int32_t* base = p.base + (first + row) % p.base_rows * p.columns + column;
      if (p.sums != nullptr)
        use.finish(tile + row * kColumns, base, width, p.sums + (first + row) * p.columns + column);
      else
        p.bits[(first + row) * blocks + block] =
            use.compare(tile + row * kColumns, base, width, p.thresholds + column) ^ p.flips[block];
    }
  }
};

Path best_path() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return Path::avx512;
  if (__builtin_cpu_supports("avx2")) return Path::avx2;
#endif
  return Path::portable;
}

bool has_bytes() {
#if defined(__x86_64__)
  return best_path() == Path::avx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

#if defined(__x86_64__)
AVX512 uint64_t signs_of(const float* values, int64_t count) {
  uint64_t word = 0;
  for (int64_t element = 0; element < count; element += 16) {
    const __mmask16 here = (__mmask16)((1u << std::min<int64_t>(16, count - element)) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(here, values + element);
    word |= uint64_t(_mm512_mask_cmp_ps_mask(here, x, _mm512_setzero_ps(), _CMP_GE_OQ)) << element;
  }
  return word;
}

AVX512 uint64_t plane_of(const uint8_t* codes, int64_t count, int plane) {
  const __mmask64 here = count >= 64 ? ~0ull : (1ull << count) - 1;
  return _mm512_test_epi8_mask(_mm512_maskz_loadu_epi8(here, codes), _mm512_set1_epi8((char)(1 << plane)));
}
#endif

uint64_t signs_of_any(const float* values, int64_t count) {
  uint64_t word = 0;
  for (int64_t element = 0; element < count; ++element) word |= uint64_t(values[element] >= 0.0f) << element;
  return word;
}

uint64_t plane_of_any(const uint8_t* codes, int64_t count, int plane) {
  uint64_t word = 0;
  for (int64_t element = 0; element < count; ++element) word |= uint64_t(codes[element] >> plane & 1) << element;
  return word;
}

// Calls word(row, index, elements) for each word of `rows` rows of `count` elements.
template <typename Word>
void each_word(int64_t rows, int64_t count, int threads, const Word& word) {
  const int64_t words = (count + 63) / 64, chunk = std::max<int64_t>(1, 2048 / std::max<int64_t>(1, words));
  parallel((rows + chunk - 1) / chunk, threads, [&](int64_t part) {
    for (int64_t row = part * chunk; row < std::min(rows, (part + 1) * chunk); ++row)
      for (int64_t index = 0; index < words; ++index)
        word(row, index, std::min<int64_t>(64, count - index * 64));
  });
}

void quantize_any(const float* values, int64_t count, float lowest, float step, int highest, uint8_t* codes) {
  for (int64_t element = 0; element < count; ++element) {
    const float level = std::nearbyint((values[element] - lowest) / step);
    codes[element] = uint8_t(level > 0.0f ? std::min(level, float(highest)) : 0.0f);  // of what is no number, too
  }
}

#if defined(__x86_64__)
AVX512 void quantize_avx512(const float* values, int64_t count, float lowest, float step, int highest, uint8_t* codes) {
  const __m512 low = _mm512_set1_ps(lowest), width = _mm512_set1_ps(step);
  const __m512 most = _mm512_set1_ps(float(highest)), least = _mm512_setzero_ps();
  int64_t element = 0;
  for (; element + 16 <= count; element += 16) {
    const __m512 level = _mm512_div_ps(_mm512_sub_ps(_mm512_loadu_ps(values + element), low), width);
    // Clamped first: a level that no int32 holds would come out as the lowest one.
    const __m512 inside = _mm512_min_ps(_mm512_max_ps(level, least), most);
    _mm_storeu_si128((__m128i*)(codes + element), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(inside)));
  }
  quantize_any(values + element, count - element, lowest, step, highest, codes + element);
}
#endif

}  // namespace

extern "C" {

// Asks for large pages: else a fifth of a large product's time goes into page faults. A wish: it may fail.
void qexp_wish_large_pages(void* memory, int64_t size) {
#if defined(__linux__)
  const size_t page = size_t(1) << 21, place = reinterpret_cast<size_t>(memory);
  const size_t start = (place + page - 1) / page * page, end = (place + size_t(size)) / page * page;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

// Says how to compute on torch's threads: `GOMP_parallel` of the OpenMP that it loaded, or null.
void qexp_use_team(void* found) { team = reinterpret_cast<Team>(found); }

// What the processor runs: a `Path`.
int qexp_best_path() { return static_cast<int>(best_path()); }

int qexp_has_bytes() { return has_bytes() ? 1 : 0; }

void qexp_product(const Problem* given, int path, int threads) {
  const Problem& problem = *given;
  const int64_t tiles = (problem.geometry.rows() + kRows - 1) / kRows;
  const int64_t blocks = (problem.columns + kColumns - 1) / kColumns;
  if (tiles == 0 || blocks == 0) return;
  // Enough shares that threads end together; a share keeps its gathered rows over its blocks of columns.
  const int64_t parts = std::min(blocks, std::max<int64_t>(1, (8 * threads + tiles - 1) / tiles));
  parallel(tiles * parts, threads, [&](int64_t share) {
    const int64_t tile = share / parts, part = share % parts;
    const int64_t first = tile * kRows, count = std::min(kRows, problem.geometry.rows() - first);
    Worker worker(problem, static_cast<Path>(path));
    worker.run(first, count, part * blocks / parts, (part + 1) * blocks / parts);
  });
}

// Bit 1 where the value is at least 0.
void qexp_pack_signs(const float* values, int64_t rows, int64_t count, uint64_t* bits, int threads) {
  auto pack = signs_of_any;
#if defined(__x86_64__)
  if (best_path() == Path::avx512) pack = signs_of;
#endif
  const int64_t words = (count + 63) / 64;
  each_word(rows, count, threads, [&](int64_t row, int64_t index, int64_t elements) {
    bits[row * words + index] = pack(values + row * count + index * 64, elements);
  });
}

// codes [rows][count] -> bits [planes][rows][words]; bit e of word w is element 64 w + e, 0 behind the last one.
void qexp_pack_codes(const uint8_t* codes, int64_t rows, int64_t count, int planes, uint64_t* bits, int threads) {
  auto pack = plane_of_any;
#if defined(__x86_64__)
  if (best_path() == Path::avx512) pack = plane_of;
#endif
  const int64_t words = (count + 63) / 64;
  each_word(rows, count, threads, [&](int64_t row, int64_t index, int64_t elements) {
    for (int plane = 0; plane < planes; ++plane)
      bits[(plane * rows + row) * words + index] = pack(codes + row * count + index * 64, elements, plane);
  });
}

// The nearest level of each value, round((value - lowest) / step) from 0 to `highest`, as torch computes it.
void qexp_quantize(const float* values, int64_t count, float lowest, float step, int highest, uint8_t* codes, int threads) {
  auto take = quantize_any;
#if defined(__x86_64__)
  if (best_path() == Path::avx512) take = quantize_avx512;
#endif
  constexpr int64_t chunk = 1 << 16;
  parallel((count + chunk - 1) / chunk, threads, [&](int64_t part) {
    const int64_t first = part * chunk;
    take(values + first, std::min(chunk, count - first), lowest, step, highest, codes + first);
  });
}

// Bits a second that xor, popcount and add alone take, on the best path.
double qexp_popcount_rate(int threads, double seconds) {
  constexpr int64_t words = 64;
  std::vector<uint64_t> rows(kMicroRows * words, 0x5555555555555555), block(words * kColumns, 0x3333333333333333);
  const Instructions use = instructions(best_path());
  std::atomic<int64_t> runs{0};
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  parallel(threads, threads, [&](int64_t) {
    int32_t tile[kMicroRows * kColumns] = {};
    while (std::chrono::duration<double>(Clock::now() - start).count() < seconds)
      for (int64_t run = 0; run < 64; ++run, runs.fetch_add(1, std::memory_order_relaxed))
        use.count(rows.data(), words, kMicroRows, block.data(), words, words, 0, 8, tile);
  });
  const double passed = std::chrono::duration<double>(Clock::now() - start).count();
  return double(runs.load()) * kMicroRows * kColumns * words * 64 / passed;
}

}  // extern "C"
