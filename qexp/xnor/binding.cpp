// The kernel for torch's tensors, on the CPU. The shapes are checked here, where a wrong one would read beyond memory.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernel.h"

namespace {

using at::Tensor;

const Tensor& plain(const Tensor& tensor, at::ScalarType type, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == type, name,
              ": a contiguous tensor on the CPU of another type than given");
  return tensor;
}

uint64_t* words_of(const Tensor& tensor) { return reinterpret_cast<uint64_t*>(tensor.data_ptr<int64_t>()); }

// Fresh memory in large pages where the system has them: else a fifth of a large product's time goes into page faults.
Tensor fresh(at::IntArrayRef shape, at::ScalarType type) {
  Tensor tensor = at::empty(shape, type);
#if defined(__linux__)
  const size_t page = size_t(1) << 21;
  if (tensor.nbytes() >= 2 * page) {
    const auto start = (reinterpret_cast<size_t>(tensor.data_ptr()) + page - 1) / page * page;
    const auto end = (reinterpret_cast<size_t>(tensor.data_ptr()) + tensor.nbytes()) / page * page;
    if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // a wish: it may fail
  }
#endif
  return tensor;
}

int threads_for(double work) { return work < 2e6 ? 1 : at::get_num_threads(); }

qexp::Geometry geometry_of(const std::vector<int64_t>& n) {
  TORCH_CHECK(n.size() == 13, "geometry: 13 numbers");
  const qexp::Geometry g{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]};
  TORCH_CHECK(g.rows() >= 0 && g.taps() > 0 && g.stride_height > 0 && g.stride_width > 0, "geometry: not a layer's");
  return g;
}

Tensor product(const Tensor& activations, const Tensor& weights, int64_t columns, const Tensor& base,
               const std::vector<int64_t>& numbers, const std::optional<Tensor>& thresholds,
               const std::optional<Tensor>& flips, int64_t path) {
  qexp::Problem p{};
  const bool bytes = activations.scalar_type() == at::kByte;
  plain(activations, bytes ? at::kByte : at::kLong, "activations");
  plain(weights, at::kLong, "weights");
  plain(base, at::kInt, "base");
  TORCH_CHECK(activations.dim() == 3 && base.dim() == 2 && base.size(1) == columns && base.size(0) > 0, "shapes");
  p.geometry = geometry_of(numbers);
  p.bytes = bytes;
  p.activations = static_cast<const uint8_t*>(activations.data_ptr());
  p.activation_planes = activations.size(0);
  p.unit = activations.size(2) * (bytes ? 1 : 8);
  TORCH_CHECK(activations.size(1) == p.geometry.pixels() && (!bytes || p.activation_planes == 1), "activations: shape");
  p.weights = words_of(weights);
  p.columns = columns;
  const int64_t blocks = (columns + 63) / 64, span = p.geometry.taps() * activations.size(2);
  p.weight_planes = bytes ? 1 : weights.size(0);
  const bool fits = bytes ? weights.sizes() == at::IntArrayRef({blocks, 4, (span + 3) / 4})
                          : weights.sizes() == at::IntArrayRef({p.weight_planes, blocks, 2, span, 32});
  TORCH_CHECK(fits, "weights: shape");
  TORCH_CHECK(!bytes || qexp::has_bytes(), "bytes: this processor has no AVX-512 VNNI");
  TORCH_CHECK(path <= static_cast<int64_t>(qexp::best_path()), "path: not on this processor");
  p.base = base.data_ptr<int32_t>();
  p.base_rows = base.size(0);
  Tensor result;
  if (thresholds.has_value()) {
    plain(*thresholds, at::kInt, "thresholds");
    plain(*flips, at::kLong, "flips");
    TORCH_CHECK(thresholds->numel() == blocks * 64 && flips->numel() == blocks, "thresholds: shape");
    result = fresh({p.geometry.rows(), blocks}, at::kLong);
    p.bits = words_of(result);
    p.thresholds = thresholds->data_ptr<int32_t>();
    p.flips = words_of(*flips);
  } else {
    result = fresh({p.geometry.rows(), columns}, at::kInt);
    p.sums = result.data_ptr<int32_t>();
  }
  const double work = double(p.geometry.rows()) * columns * span * p.activation_planes * p.weight_planes;
  pybind11::gil_scoped_release release;
  qexp::product(p, path < 0 ? qexp::best_path() : static_cast<qexp::Path>(path), threads_for(work));
  return result;
}

Tensor pack_signs(const Tensor& values) {
  plain(values, at::kFloat, "values");
  TORCH_CHECK(values.dim() == 2, "values: rows and elements");
  Tensor bits = at::empty({1, values.size(0), (values.size(1) + 63) / 64}, at::kLong);
  pybind11::gil_scoped_release release;
  qexp::pack_signs(values.data_ptr<float>(), values.size(0), values.size(1), words_of(bits),
                   threads_for(double(values.numel())));
  return bits;
}

Tensor pack_codes(const Tensor& codes, int64_t planes) {
  plain(codes, at::kByte, "codes");
  TORCH_CHECK(codes.dim() == 2 && planes >= 1 && planes <= 8, "codes: rows and elements, 1 to 8 planes");
  Tensor bits = at::empty({planes, codes.size(0), (codes.size(1) + 63) / 64}, at::kLong);
  pybind11::gil_scoped_release release;
  qexp::pack_codes(codes.data_ptr<uint8_t>(), codes.size(0), codes.size(1), static_cast<int>(planes), words_of(bits),
                   threads_for(double(codes.numel())));
  return bits;
}

Tensor quantize(const Tensor& values, double lowest, double step, int64_t highest) {
  plain(values, at::kFloat, "values");
  TORCH_CHECK(highest >= 1 && highest <= 255, "highest: 1 to 255");
  Tensor codes = at::empty(values.sizes(), at::kByte);
  pybind11::gil_scoped_release release;
  qexp::quantize(values.data_ptr<float>(), values.numel(), static_cast<float>(lowest), static_cast<float>(step),
                 static_cast<int>(highest), codes.data_ptr<uint8_t>(), threads_for(double(values.numel())));
  return codes;
}

double popcount_rate(double seconds) {
  pybind11::gil_scoped_release release;
  return qexp::popcount_rate(qexp::best_path(), at::get_num_threads(), seconds);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("product", &product);
  module.def("pack_signs", &pack_signs);
  module.def("pack_codes", &pack_codes);
  module.def("quantize", &quantize);
  module.def("popcount_rate", &popcount_rate);
  module.def("best_path", [] { return static_cast<int64_t>(qexp::best_path()); });
  module.def("has_bytes", &qexp::has_bytes);
}
