#include "kernels/contrastive.h"

#include <algorithm>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/contrastive.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device_kernels.h"

namespace amur {
namespace {

using cpu::ContrastiveKernels;
using cpu::kColumnBlock;
using cpu::parallel_for;

constexpr int64_t kRowGrain = 16;

void check_vector(const char* name, ConstTensorView v, int64_t size, DType dtype) {
  AMUR_CHECK(v.elements() == size && v.dtype() == dtype, "{} is {} {}, wanted {} [{}]", name,
             name_of(v.dtype()), v.shape().text(), name_of(dtype), size);
}

}  // namespace

void contrastive_statistics(ConstTensorView logits, TensorView row_maximum, TensorView row_sum,
                            TensorView column_maximum, TensorView column_sum, Stream stream) {
  require_device("contrastive_statistics",
                 {logits, row_maximum, row_sum, column_maximum, column_sum});
  const int64_t m = logits.rows(), n = logits.columns();
  check_vector("row_maximum", row_maximum, m, logits.dtype());
  check_vector("row_sum", row_sum, m, DType::f64);
  if (column_maximum.defined()) {
    check_vector("column_maximum", column_maximum, n, logits.dtype());
    check_vector("column_sum", column_sum, n, DType::f64);
  }
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_statistics(logits, row_maximum, row_sum, column_maximum,
                                                   column_sum, stream);
  dispatch_f32_f64(logits.dtype(), "contrastive_statistics", [&]<class T>() {
    const auto& kernels = cpu::kernels<ContrastiveKernels<T>>();
    const T* z = logits.as<T>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        kernels.row_statistics(z + i * n, n, row_maximum.as<T>() + i, row_sum.as<double>() + i);
    });
    if (!column_maximum.defined()) return;
    parallel_for((n + kColumnBlock - 1) / kColumnBlock, 1, [&](int64_t first, int64_t last) {
      for (int64_t j = first * kColumnBlock; j < std::min(n, last * kColumnBlock);
           j += kColumnBlock)
        kernels.column_statistics(z + j, m, n, std::min(kColumnBlock, n - j),
                                  column_maximum.as<T>() + j, column_sum.as<double>() + j);
    });
  });
}

double contrastive_softmax_gradient(TensorView logits, ConstTensorView row_maximum,
                                    ConstTensorView row_factor, ConstTensorView column_maximum,
                                    ConstTensorView column_factor, Stream stream) {
  require_device("contrastive_softmax_gradient",
                 {logits, row_maximum, row_factor, column_maximum, column_factor});
  const int64_t m = logits.rows(), n = logits.columns();
  check_vector("row_maximum", row_maximum, m, logits.dtype());
  check_vector("row_factor", row_factor, m, logits.dtype());
  const bool columns = column_maximum.defined();
  if (columns) {
    check_vector("column_maximum", column_maximum, n, logits.dtype());
    check_vector("column_factor", column_factor, n, logits.dtype());
  }
  if (logits.elements() == 0) return 0;
  if (on_gpu(logits))
    return device_kernels().contrastive_softmax_gradient(logits, row_maximum, row_factor,
                                                         column_maximum, column_factor, stream);
  std::vector<double> sums(static_cast<size_t>(m));
  dispatch_f32_f64(logits.dtype(), "contrastive_softmax_gradient", [&]<class T>() {
    const auto& kernels = cpu::kernels<ContrastiveKernels<T>>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        sums[static_cast<size_t>(i)] = kernels.softmax_gradient(
            logits.as<T>() + i * n, n, row_maximum.as<T>()[i], row_factor.as<T>()[i],
            columns ? column_maximum.as<T>() : nullptr, columns ? column_factor.as<T>() : nullptr);
    });
  });
  double total = 0;
  for (double s : sums) total += s;
  return total;
}

SigmoidSums contrastive_sigmoid(TensorView logits, double bias, ConstTensorView row_weight,
                                Stream stream) {
  require_device("contrastive_sigmoid", {logits, row_weight});
  const int64_t m = logits.rows(), n = logits.columns();
  check_vector("row_weight", row_weight, m, logits.dtype());
  if (logits.elements() == 0) return {};
  if (on_gpu(logits)) return device_kernels().contrastive_sigmoid(logits, bias, row_weight, stream);
  std::vector<SigmoidSums> sums(static_cast<size_t>(m));
  dispatch_f32_f64(logits.dtype(), "contrastive_sigmoid", [&]<class T>() {
    const auto& kernels = cpu::kernels<ContrastiveKernels<T>>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        sums[static_cast<size_t>(i)] =
            kernels.sigmoid(logits.as<T>() + i * n, n, static_cast<T>(bias), row_weight.as<T>()[i]);
    });
  });
  SigmoidSums total;
  for (const SigmoidSums& s : sums) {
    total.loss += s.loss;
    total.gradient += s.gradient;
    total.gradient_z += s.gradient_z;
  }
  return total;
}

}  // namespace amur
