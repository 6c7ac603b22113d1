#include "kernels/contrastive.h"

#include <algorithm>
#include <vector>

#include "kernels/check.h"
#include "kernels/contrastive_math.h"
#include "kernels/cpu/contrastive.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device_kernels.h"

namespace amur {
namespace {

using cpu::ContrastiveKernels;
using cpu::kColumnBlock;
using cpu::parallel_for;
using cpu::SigmoidSums;

constexpr int64_t kRowGrain = 16;

void check_vector(const char* name, ConstTensorView v, int64_t size, DType dtype) {
  AMUR_CHECK(v.elements() == size && v.dtype() == dtype, "{} is {} {}, wanted {} [{}]", name,
             name_of(v.dtype()), v.shape().text(), name_of(dtype), size);
}

void check_positives(const TilePositives& positives, int64_t rows) {
  check_vector("positives", positives.column, rows, DType::i64);
  check_vector("values of positives", positives.value, rows, DType::f64);
}

// f(row, entry) for each positive that is in the tile.
template <class T, class F>
void for_each_positive(TensorView logits, const int64_t* column, int64_t first_column, const F& f) {
  const int64_t n = logits.columns();
  for (int64_t i = 0; i < logits.rows(); ++i) {
    const int64_t j = column[i] - first_column;
    if (j >= 0 && j < n) f(i, logits.as<T>()[i * n + j]);
  }
}

// Returns how many entries were masked.
template <class T>
int64_t exclude(TensorView logits, TilePlace place, const LogitExclusions& exclusions,
                double* positive_logit) {
  const int64_t m = logits.rows(), n = logits.columns();
  const int64_t* positives = exclusions.positive.as<int64_t>() + place.row;
  for_each_positive<T>(logits, positives, place.column, [&](int64_t i, T& entry) {
    if (positive_logit) positive_logit[i] = static_cast<double>(entry);
    entry = kMaskedLogit;
  });
  const int64_t* first_range = exclusions.first_range.as<int64_t>();
  const int64_t* ranges = exclusions.ranges.as<int64_t>();
  const int32_t* columns = exclusions.columns.as<int32_t>();
  int64_t masked = 0;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t row = place.row + i, self = exclusions.self.as<int64_t>()[row] - place.column;
    T* z = logits.as<T>() + i * n;
    if (self >= 0 && self < n) z[self] = kMaskedLogit;
    for (int64_t r = first_range[row]; r < first_range[row + 1]; ++r) {
      const int32_t* last = columns + ranges[2 * r + 1];
      for (const int32_t* c = std::lower_bound(columns + ranges[2 * r], last, place.column);
           c != last && *c < place.column + n; ++c) {
        T& entry = z[*c - place.column];
        // Ranges may overlap: count an entry once.
        if (*c == positives[i] || entry == static_cast<T>(kMaskedLogit)) continue;
        entry = kMaskedLogit;
        ++masked;
      }
    }
  }
  return masked;
}

}  // namespace

void contrastive_exclude(TensorView logits, TilePlace place, const LogitExclusions& exclusions,
                         TensorView positive_logit, TensorView masked, Stream stream) {
  const LogitExclusions& e = exclusions;
  require_device("contrastive_exclude", {logits, e.positive, e.self, e.first_range, e.ranges,
                                         e.columns, positive_logit, masked});
  const int64_t m = logits.rows(), rows = e.positive.rows();
  AMUR_CHECK(place.row >= 0 && place.column >= 0 && place.row + m <= rows,
             "rows {}+{} of {}, columns from {}", place.row, m, rows, place.column);
  check_vector("positive", e.positive, rows, DType::i64);
  check_vector("self", e.self, rows, DType::i64);
  check_vector("first_range", e.first_range, rows + 1, DType::i64);
  if (positive_logit.defined()) check_vector("positive_logit", positive_logit, m, DType::f64);
  if (masked.defined()) check_vector("masked", masked, 1, DType::f64);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_exclude(logits, place, e, positive_logit, masked, stream);
  dispatch_f32_f64(logits.dtype(), "contrastive_exclude", [&]<class T>() {
    const int64_t count = exclude<T>(
        logits, place, e, positive_logit.defined() ? positive_logit.as<double>() : nullptr);
    if (masked.defined()) masked.as<double>()[0] += static_cast<double>(count);
  });
}

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

void contrastive_softmax_gradient(TensorView logits, ConstTensorView row_maximum,
                                  ConstTensorView row_factor, ConstTensorView column_maximum,
                                  ConstTensorView column_factor, const TilePositives& positives,
                                  TensorView sum, Stream stream) {
  require_device("contrastive_softmax_gradient",
                 {logits, row_maximum, row_factor, column_maximum, column_factor, positives.column,
                  positives.value, sum});
  const int64_t m = logits.rows(), n = logits.columns();
  check_vector("row_maximum", row_maximum, m, logits.dtype());
  check_vector("row_factor", row_factor, m, logits.dtype());
  const bool columns = column_maximum.defined();
  if (columns) {
    check_vector("column_maximum", column_maximum, n, logits.dtype());
    check_vector("column_factor", column_factor, n, logits.dtype());
  }
  check_positives(positives, m);
  check_vector("sum", sum, 1, DType::f64);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_softmax_gradient(
        logits, row_maximum, row_factor, column_maximum, column_factor, positives, sum, stream);
  std::vector<double> of_row(static_cast<size_t>(m));
  dispatch_f32_f64(logits.dtype(), "contrastive_softmax_gradient", [&]<class T>() {
    const auto& kernels = cpu::kernels<ContrastiveKernels<T>>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        of_row[static_cast<size_t>(i)] = kernels.softmax_gradient(
            logits.as<T>() + i * n, n, row_maximum.as<T>()[i], row_factor.as<T>()[i],
            columns ? column_maximum.as<T>() : nullptr, columns ? column_factor.as<T>() : nullptr);
    });
    for_each_positive<T>(
        logits, positives.column.as<int64_t>(), positives.first_column,
        [&](int64_t i, T& entry) { entry = static_cast<T>(positives.value.as<double>()[i]); });
  });
  double total = 0;
  for (double s : of_row) total += s;
  sum.as<double>()[0] += total;
}

void contrastive_sigmoid(TensorView logits, double bias, double weight,
                         const TilePositives& positives, TensorView sums, Stream stream) {
  require_device("contrastive_sigmoid", {logits, positives.column, positives.value, sums});
  const int64_t m = logits.rows(), n = logits.columns();
  check_positives(positives, m);
  check_vector("sums", sums, 3, DType::f64);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_sigmoid(logits, bias, weight, positives, sums, stream);
  const int64_t* column = positives.column.as<int64_t>();
  std::vector<SigmoidSums> of_row(static_cast<size_t>(m));
  dispatch_f32_f64(logits.dtype(), "contrastive_sigmoid", [&]<class T>() {
    const auto& kernels = cpu::kernels<ContrastiveKernels<T>>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        of_row[static_cast<size_t>(i)] =
            kernels.sigmoid(logits.as<T>() + i * n, n, static_cast<T>(bias),
                            column[i] < 0 ? T{0} : static_cast<T>(weight));
    });
    SigmoidSums total;
    for (const SigmoidSums& s : of_row) {
      total.loss += s.loss;
      total.gradient += s.gradient;
      total.gradient_z += s.gradient_z;
    }
    double* all = sums.as<double>();
    all[0] += total.loss;
    all[1] += total.gradient;
    all[2] += total.gradient_z;
    for_each_positive<T>(logits, column, positives.first_column, [&](int64_t i, T& entry) {
      const double z = positives.value.as<double>()[i];
      const RightPair pair = right_pair(weight, z + bias);
      all[0] += pair.loss;
      all[1] += pair.gradient;
      all[2] += pair.gradient * z;
      entry = static_cast<T>(pair.gradient);
    });
  });
}

}  // namespace amur
