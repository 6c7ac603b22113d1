#include "kernels/contrastive.h"

#include <algorithm>
#include <vector>

#include "kernels/check.h"
#include "kernels/contrastive_math.h"
#include "kernels/cpu/contrastive.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cuda/launch.h"
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
// [count, parts] with at least so many parts.
void check_parts(const char* name, ConstTensorView v, int64_t count, int64_t parts) {
  AMUR_CHECK(v.dtype() == DType::f64 && v.rows() * v.columns() >= count * parts &&
                 (count == 1 || v.rows() == count),
             "{} is {} {}, wanted f64 of {} times {} parts", name, name_of(v.dtype()),
             v.shape().text(), count, parts);
}
void check_log_sums(const char* name, const LogSums& sums, int64_t parts, DType dtype) {
  AMUR_CHECK(sums.sum.rows() >= parts, "{}: {} parts of at least {}", name, sums.sum.rows(), parts);
  check_vector(name, sums.sum, sums.sum.elements(), DType::f64);
  check_vector(name, sums.maximum, sums.sum.elements(), dtype);
}
void check_columns(const LogitTile& tile, const LogSums& columns, int64_t parts) {
  check_log_sums("columns", columns, parts, tile.logits.dtype());
  AMUR_CHECK(tile.place.column + tile.logits.columns() <= columns.sum.columns(),
             "columns {}+{} of {}", tile.place.column, tile.logits.columns(),
             columns.sum.columns());
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
        if (masked) *masked += 1;
      }
    }
  }
}

// The `count` sums from `first` on of the one part that there is on a CPU, ready to be added to.
template <class T>
struct RunningSums {
  T* maximum;
  double* sum;

  RunningSums(const LogSums& sums, int64_t first, int64_t count)
      : maximum(sums.maximum.as<T>() + first), sum(sums.sum.as<double>() + first) {
    for (int64_t i = 0; i < count; ++i)
      if (sum[i] == 0) maximum[i] = kMaskedLogit;
  }
};

}  // namespace

LogitParts logit_parts(int64_t m, int64_t n, Device device) {
  if (device.kind == Device::Kind::cpu) return {};
  const int64_t across = cuda::panels_across(n), down = cuda::panels_down(m);
  return {across, down, across * down};
}

void contrastive_statistics(const LogitTile& tile, const LogSums& rows, const LogSums& columns,
                            TensorView positive_logit, TensorView masked, Stream stream) {
  const char* op = "contrastive_statistics";
  check_tile(op, tile,
             {rows.maximum, rows.sum, columns.maximum, columns.sum, positive_logit, masked});
  const TensorView logits = tile.logits;
  const int64_t m = logits.rows(), n = logits.columns(), all_rows = rows.sum.columns();
  const LogitParts parts = logit_parts(m, n, logits.device());
  check_log_sums("rows", rows, parts.rows, logits.dtype());
  check_vector("positive", tile.exclusions.positive, all_rows, DType::i64);
  if (columns.sum.defined()) check_columns(tile, columns, parts.columns);
  check_vector("positive_logit", positive_logit, all_rows, DType::f64);
  check_parts("masked", masked, 1, parts.whole);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_statistics(tile, rows, columns, positive_logit, masked,
                                                   stream);
  dispatch_f32_f64(logits.dtype(), op, [&]<class T>() {
    exclude<T>(tile, positive_logit.as<double>() + tile.place.row, masked.as<double>());
    const auto& kernels = cpu::kernels<ContrastiveStatistics<T>>();
    const T* z = logits.as<T>();
    const RunningSums<T> of_rows(rows, tile.place.row, m);
    parallel_for(m, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        kernels.row(z + i * n, n, of_rows.maximum + i, of_rows.sum + i);
    });
    if (!columns.sum.defined()) return;
    const RunningSums<T> of_columns(columns, tile.place.column, n);
    parallel_for((n + kColumnBlock - 1) / kColumnBlock, 1, [&](int64_t first, int64_t last) {
      for (int64_t j = first * kColumnBlock; j < std::min(n, last * kColumnBlock);
           j += kColumnBlock)
        kernels.columns(z + j, m, n, std::min(kColumnBlock, n - j), of_columns.maximum + j,
                        of_columns.sum + j);
    });
  });
}

void merge_log_sums(const LogSums& sums, Stream stream) {
  const char* op = "merge_log_sums";
  require_device(op, {sums.maximum, sums.sum});
  check_log_sums("sums", sums, 1, sums.maximum.dtype());
  if (sums.sum.elements() == 0) return;
  if (on_gpu(sums.sum)) return device_kernels().merge_log_sums(sums, stream);
  AMUR_CHECK(sums.sum.rows() == 1, "{} parts", sums.sum.rows());
  dispatch_f32_f64(sums.maximum.dtype(), op,
                   [&]<class T>() { RunningSums<T>(sums, 0, sums.sum.columns()); });
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
  const int64_t m = logits.rows(), n = logits.columns(), all_rows = tile.exclusions.positive.rows();
  const TilePlace at = tile.place;
  check_vector("row_maximum", row_maximum, all_rows, logits.dtype());
  check_vector("row_factor", row_factor, all_rows, logits.dtype());
  const bool columns = column_maximum.defined();
  if (columns) {
    const int64_t all_columns = column_maximum.elements();
    check_vector("column_maximum", column_maximum, all_columns, logits.dtype());
    check_vector("column_factor", column_factor, all_columns, logits.dtype());
    AMUR_CHECK(at.column + n <= all_columns, "columns {}+{} of {}", at.column, n, all_columns);
  }
  check_vector("positive_gradient", positive_gradient, all_rows, DType::f64);
  check_parts("sum", sum, 1, logit_parts(m, n, logits.device()).whole);
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
        of_row[static_cast<size_t>(i)] = kernels.softmax(
            logits.as<T>() + i * n, n, row_maximum.as<T>()[at.row + i],
            row_factor.as<T>()[at.row + i], columns ? column_maximum.as<T>() + at.column : nullptr,
            columns ? column_factor.as<T>() + at.column : nullptr, gradient.as<G>() + i * n);
    });
    for_each_positive<G>(tile, gradient, [&](int64_t i, G& entry) {
      entry = G(static_cast<AccumulateType<G>>(positive_gradient.as<double>()[at.row + i]));
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
  const TensorView logits = tile.logits;
  const int64_t m = logits.rows(), n = logits.columns();
  check_parts("sums", sums, 4, logit_parts(m, n, logits.device()).whole);
  if (logits.elements() == 0) return;
  if (on_gpu(logits))
    return device_kernels().contrastive_sigmoid(tile, bias, weight, sums, gradient, stream);
  const int64_t* positive = tile.exclusions.positive.as<int64_t>() + tile.place.row;
  std::vector<SigmoidSums> of_row(static_cast<size_t>(m));
  std::vector<double> positive_logit(static_cast<size_t>(m));
  double masked = 0;
  dispatch_gradient(tile, gradient.dtype(), op, [&]<class T, class G>() {
    exclude<T>(tile, positive_logit.data(), &masked);
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
    }
    total[3] = masked;
    const int64_t parts = sums.columns();
    double* all = sums.as<double>();
    for (int k = 0; k < 4; ++k) all[k * parts] += total[k];
    for_each_positive<G>(tile, gradient, [&](int64_t i, G& entry) {
      const double z = positive_logit[static_cast<size_t>(i)];
      const RightPair pair = right_pair(weight, z + bias);
      all[0] += pair.loss;
      all[parts] += pair.gradient;
      all[2 * parts] += pair.gradient * z;
      entry = G(static_cast<AccumulateType<G>>(pair.gradient));
    });
  });
}

std::vector<double> sums_of_parts(ConstTensorView parts, Stream stream) {
  const auto count = static_cast<size_t>(parts.rows());
  const int64_t n = parts.columns();
  check_vector("parts", parts, parts.elements(), DType::f64);
  if (n == 0 || on_gpu(parts))
    return n == 0 ? std::vector<double>(count) : device_kernels().sums_of_parts(parts, stream);
  std::vector<double> sums(count);
  for (size_t k = 0; k < count; ++k)
    for (int64_t i = 0; i < n; ++i) sums[k] += parts.as<double>()[static_cast<int64_t>(k) * n + i];
  return sums;
}

void softmax_step(SoftmaxStep step, const SoftmaxEnds& ends, Stream stream) {
  const char* op = "softmax_step";
  const int64_t rows = ends.positive.rows();
  const DType dtype = ends.row_maximum.dtype();
  require_device(op, {ends.positive, ends.positive_logit, ends.row_maximum, ends.row_factor,
                      ends.row_sum, ends.positive_gradient, ends.terms});
  check_vector("positive", ends.positive, rows, DType::i64);
  check_vector("row_maximum", ends.row_maximum, rows, dtype);
  check_vector("row_factor", ends.row_factor, rows, dtype);
  for (const ConstTensorView& of_rows :
       {ends.positive_logit, ends.row_sum, ConstTensorView(ends.positive_gradient)})
    check_vector("of rows", of_rows, rows, DType::f64);
  check_vector("terms", ends.terms, 2 * rows, DType::f64);
  if (step != SoftmaxStep::rows) {
    require_device(op, {ends.positive, ends.column_maximum, ends.column_factor, ends.own_maximum,
                        ends.column_sum, ends.column_terms});
    const int64_t columns = ends.column_maximum.elements();
    for (const ConstTensorView& of_columns :
         {ConstTensorView(ends.column_maximum), ConstTensorView(ends.column_factor),
          ends.own_maximum})
      check_vector("of columns", of_columns, columns, dtype);
    check_vector("column_sum", ends.column_sum, columns, DType::f64);
    check_vector("column_terms", ends.column_terms, 2 * columns, DType::f64);
  }
  if (on_gpu(ends.positive)) return device_kernels().softmax_step(step, ends, stream);
  dispatch_f32_f64(dtype, op, [&]<class T>() {
    with_step<T>(step, ends, [](const auto& items) {
      parallel_for(items.items(), 1024, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) items(i);
      });
    });
  });
}

}  // namespace amur
