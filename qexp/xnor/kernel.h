// What the packed product is, whoever computes it: exclusive or and popcount on bits, or bytes times signs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qexp {

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

Path best_path();                // what this processor runs
bool has_bytes();                // whether products of bytes run here (AVX-512 VNNI)
void product(const Problem& problem, Path path, int threads);
// codes [rows][count] -> bits [planes][rows][words]; bit e of word w is element 64 w + e, 0 behind the last one.
void pack_codes(const uint8_t* codes, int64_t rows, int64_t count, int planes, uint64_t* bits, int threads);
void pack_signs(const float* values, int64_t rows, int64_t count, uint64_t* bits, int threads);  // bit: value >= 0
// The nearest level of each value, round((value - lowest) / step) from 0 to 255, as torch computes it.
void quantize(const float* values, int64_t count, float lowest, float step, int highest, uint8_t* codes, int threads);
double popcount_rate(Path path, int threads, double seconds);  // bits a second that xor, popcount and add alone take

}  // namespace qexp
