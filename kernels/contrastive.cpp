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

using cpu::ContrastiveGradients;
using cpu::ContrastiveStatistics;
using cpu::kColumnBlock;
using cpu::parallel_for;
using cpu::SigmoidSums;

constexpr int64_t kRowGrain = 16;

void check_vector(const char* name, ConstTensorView v, int64_t size, DType dtype) {
  AMUR_CHECK(v.elements() == size && v.dtype() == dtype, "{} is {} {}, wanted {} [{}]", name,
             name_of(v.dtype()), v.shape().text(), name_of(dtype), size);
}

// Exclusions of a tile whose first row is there, and its passes' results.
void check_tile(const char* op, const LogitTile& tile,
                std::initializer_list<ConstTensorView> others) {
  const LogitExclusions& e = tile.exclusions;
  require_device(op, {tile.logits, e.positive, e.self, e.first_range, e.ranges, e.columns});
  for (const ConstTensorView& other : others) require_device(op, {tile.logits, other});
  const int64_t m = tile.logits.rows(), rows = e.positive.rows();
  const TilePlace at = tile.place;
  AMUR_CHECK(at.row >= 0 && at.column >= 0 && at.row + m <= rows,
             "{}: rows {}+{} of {}, columns from {}", op, at.row, m, rows, at.column);
  check_vector("positive", e.positive, rows, DType::i64);
  check_vector("self", e.self, rows, DType::i64);
  check_vector("first_range", e.first_range, rows + 1, DType::i64);
}
void check_gradient(const LogitTile& tile, ConstTensorView gradient) {
  AMUR_CHECK(gradient.rows() == tile.logits.rows() && gradient.columns() == tile.logits.columns(),
             "logits {}, gradients {}", tile.logits.shape().text(), gradient.shape().text());
  AMUR_CHECK(gradient.raw() != tile.logits.raw() || gradient.dtype() == tile.logits.dtype(),
             "{} gradients in the place of {} logits", name_of(gradient.dtype()),
             name_of(tile.logits.dtype()));
}

// f(row, element) for each positive that is in the tile, of logits or gradients of type E.
template <class E, class F>
void for_each_positive(const LogitTile& tile, TensorView elements, const F& f) {
  const int64_t m = elements.rows(), n = elements.columns();
  const int64_t* positives = tile.exclusions.positive.as<int64_t>() + tile.place.row;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t j = positives[i] - tile.place.column;
    if (j >= 0 && j < n) f(i, elements.as<E>()[i * n + j]);
  }
}

// Sets positives, own and masked entries to kMaskedLogit; positive_logit[i] takes the positives
// that are there, masked[i] += the row's masked entries. Both may be null.
template <class T>
void exclude(const LogitTile& tile, double* positive_logit, double* masked) {
  const LogitExclusions& e = tile.exclusions;
  const TilePlace place = tile.place;
  const int64_t m = tile.logits.rows(), n = tile.logits.columns();
  for_each_positive<T>(tile, tile.logits, [&](int64_t i, T& entry) {
    if (positive_logit) positive_logit[i] = static_cast<double>(entry);
    entry = kMaskedLogit;
  });
  const int64_t* first_range = e.first_range.as<int64_t>();
  const int64_t* ranges = e.ranges.as<int64_t>();
  const int32_t* columns = e.columns.as<int32_t>();
  for (int64_t i = 0; i < m; ++i) {
    const int64_t row = place.row + i, self = e.self.as<int64_t>()[row] - place.column;
    T* z = tile.logits.as<T>() + i * n;
    if (self >= 0 && self < n) z[self] = kMaskedLogit;
    for (int64_t r = first_range[row]; r < first_range[row + 1]; ++r) {
      const int32_t* last = columns + ranges[2 * r + 1];
      for (const int32_t* c = std::lower_bound(columns + ranges[2 * r], last, place.column);
           c != last && *c < place.column + n; ++c) {
        T& entry = z[*c - place.column];
        // Positives are out already, and ranges may overlap: an entry counts once.
        if (entry == static_cast<T>(kMaskedLogit)) continue;
        entry = kMaskedLogit;
        if (masked) masked[i] += 1;
      }
    }
  }
}

}  // namespace

void contrastive_statistics(const LogitTile& tile, TensorView row_maximum, TensorView row_sum,
                            TensorView column_maximum, TensorView column_sum,
                            TensorView positive_logit, TensorView masked, Stream stream) {
  const char* op = "contrastive_statistics";
  check_tile(op, tile, {row_maximum, row_sum, column_maximum, column_sum, positive_logit, masked});
  const TensorView logits = tile.logits;
  const int64_t m = logits.rows(), n = logits.columns();
  check_vector("row_maximum", row_maximum, m, logits.dtype());
  check_vector("row_sum", row_sum, m, DType::f64);
  if (column_maximum.defined()) {
    check_vector("column_maximum", column_maximum, n, logits.dtype());
    check_vector("column_sum", column_sum, n, DType::f64);
  }
  check_vector("positive_logit", positive_logit, m, DType::f64);
  check_vector("masked", masked, m, DType::f64);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_statistics(tile, row_maximum, row_sum, column_maximum,
                                                   column_sum, positive_logit, masked, stream);
  dispatch_f32_f64(logits.dtype(), op, [&]<class T>() {
    exclude<T>(tile, positive_logit.as<double>(), masked.as<double>());
    const auto& kernels = cpu::kernels<ContrastiveStatistics<T>>();
    const T* z = logits.as<T>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        kernels.row(z + i * n, n, row_maximum.as<T>() + i, row_sum.as<double>() + i);
    });
    if (!column_maximum.defined()) return;
    parallel_for((n + kColumnBlock - 1) / kColumnBlock, 1, [&](int64_t first, int64_t last) {
      for (int64_t j = first * kColumnBlock; j < std::min(n, last * kColumnBlock);
           j += kColumnBlock)
        kernels.columns(z + j, m, n, std::min(kColumnBlock, n - j), column_maximum.as<T>() + j,
                        column_sum.as<double>() + j);
    });
  });
}

void contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                  ConstTensorView row_factor, ConstTensorView column_maximum,
                                  ConstTensorView column_factor, ConstTensorView positive_gradient,
                                  TensorView sum, TensorView gradient, Stream stream) {
  const char* op = "contrastive_softmax_gradient";
  check_tile(
      op, tile,
      {row_maximum, row_factor, column_maximum, column_factor, positive_gradient, sum, gradient});
  check_gradient(tile, gradient);
  const TensorView logits = tile.logits;
  const int64_t m = logits.rows(), n = logits.columns();
  check_vector("row_maximum", row_maximum, m, logits.dtype());
  check_vector("row_factor", row_factor, m, logits.dtype());
  const bool columns = column_maximum.defined();
  if (columns) {
    check_vector("column_maximum", column_maximum, n, logits.dtype());
    check_vector("column_factor", column_factor, n, logits.dtype());
  }
  check_vector("positive_gradient", positive_gradient, m, DType::f64);
  check_vector("sum", sum, 1, DType::f64);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_softmax_gradient(tile, row_maximum, row_factor,
                                                         column_maximum, column_factor,
                                                         positive_gradient, sum, gradient, stream);
  std::vector<double> of_row(static_cast<size_t>(m));
  dispatch_gradient(tile, gradient.dtype(), op, [&]<class T, class G>() {
    exclude<T>(tile, nullptr, nullptr);
    const auto& kernels = cpu::kernels<ContrastiveGradients<T, G>>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        of_row[static_cast<size_t>(i)] =
            kernels.softmax(logits.as<T>() + i * n, n, row_maximum.as<T>()[i],
                            row_factor.as<T>()[i], columns ? column_maximum.as<T>() : nullptr,
                            columns ? column_factor.as<T>() : nullptr, gradient.as<G>() + i * n);
    });
    for_each_positive<G>(tile, gradient, [&](int64_t i, G& entry) {
      entry = G(static_cast<AccumulateType<G>>(positive_gradient.as<double>()[i]));
    });
  });
  double total = 0;
  for (double s : of_row) total += s;
  sum.as<double>()[0] += total;
}

void contrastive_sigmoid(const LogitTile& tile, double bias, double weight, TensorView sums,
                         TensorView gradient, Stream stream) {
  const char* op = "contrastive_sigmoid";
  check_tile(op, tile, {sums, gradient});
  check_gradient(tile, gradient);
  check_vector("sums", sums, 4, DType::f64);
  const TensorView logits = tile.logits;
  const int64_t m = logits.rows(), n = logits.columns();
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_sigmoid(tile, bias, weight, sums, gradient, stream);
  const int64_t* positive = tile.exclusions.positive.as<int64_t>() + tile.place.row;
  std::vector<SigmoidSums> of_row(static_cast<size_t>(m));
  std::vector<double> positive_logit(static_cast<size_t>(m)), masked(static_cast<size_t>(m));
  dispatch_gradient(tile, gradient.dtype(), op, [&]<class T, class G>() {
    exclude<T>(tile, positive_logit.data(), masked.data());
    const auto& kernels = cpu::kernels<ContrastiveGradients<T, G>>();
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        of_row[static_cast<size_t>(i)] = kernels.sigmoid(
            logits.as<T>() + i * n, n, static_cast<T>(bias),
            positive[i] < 0 ? T{0} : static_cast<T>(weight), gradient.as<G>() + i * n);
    });
    double total[4] = {};
    for (size_t i = 0; i < of_row.size(); ++i) {
      total[0] += of_row[i].loss;
      total[1] += of_row[i].gradient;
      total[2] += of_row[i].gradient_z;
      total[3] += masked[i];
    }
    double* all = sums.as<double>();
    for (int k = 0; k < 4; ++k) all[k] += total[k];
    for_each_positive<G>(tile, gradient, [&](int64_t i, G& entry) {
      const double z = positive_logit[static_cast<size_t>(i)];
      const RightPair pair = right_pair(weight, z + bias);
      all[0] += pair.loss;
      all[1] += pair.gradient;
      all[2] += pair.gradient * z;
      entry = G(static_cast<AccumulateType<G>>(pair.gradient));
    });
  });
}

}  // namespace amur
