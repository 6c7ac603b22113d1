// The tile passes against plain loops, with masked entries, odd widths and extreme logits.
#include "kernels/contrastive.h"

#include <set>

#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class ContrastiveTest : public KernelTest {
 protected:
  // A tile of the case's type, with what its entries are in double.
  struct Tile {
    Tensor tensor;
    Doubles values;
  };
  Tile logits(int64_t m, int64_t n, double spread, double masked_share) const {
    const RandomKey key =
        RandomKey(17).fold(static_cast<uint64_t>(m)).fold(static_cast<uint64_t>(n));
    Doubles v(static_cast<size_t>(m * n));
    for (size_t i = 0; i < v.size(); ++i) {
      v[i] = (2 * key.uniform(2 * i) - 1) * spread;
      if (key.uniform(2 * i + 1) < masked_share) v[i] = static_cast<double>(kMaskedLogit);
    }
    Tensor t = from_doubles(v, {m, n}, dtype(), device());
    Doubles stored = to_doubles(t);
    return {std::move(t), std::move(stored)};
  }
  Tensor vector(int64_t n, double value) const { return filled({n}, dtype(), value); }
  Tensor sums(int64_t n, double value = 0) const { return filled({n}, DType::f64, value); }
  // Of rows or columns, for tiles that need so many parts; nothing yet.
  struct Sums {
    Tensor maximum, sum;
    LogSums view() { return {maximum, sum}; }
    // All parts together.
    Doubles merged_maximum() const { return to_doubles(maximum.view().slice(0, 1)); }
    Doubles merged_sum() const { return to_doubles(sum.view().slice(0, 1)); }
  };
  Sums log_sums(int64_t parts, int64_t n) const {
    return {filled({parts, n}, dtype(), 0), filled({parts, n}, DType::f64, 0)};
  }
  LogitParts parts(int64_t m, int64_t n) const { return logit_parts(m, n, device()); }
  // Sums over the whole, of `count` kinds; the first part has `value` of each already.
  Tensor whole(int64_t count, LogitParts parts, double value = 0) const {
    Doubles all(static_cast<size_t>(count * parts.whole));
    for (int64_t k = 0; k < count; ++k) all[static_cast<size_t>(k * parts.whole)] = value;
    return from_doubles(all, {count, parts.whole}, DType::f64, device());
  }
  double bound() const { return dtype() == DType::f32 ? 5e-6 : 5e-14; }
  // Gradients come in the type of the logits, in their place, and rounded to bf16 beside them.
  std::vector<DType> gradient_types() const {
    return dtype() == DType::f32 ? std::vector{DType::f32, DType::bf16} : std::vector{dtype()};
  }
  Tensor gradient_beside(const Tile& tile, DType type) const {
    return type == dtype() ? Tensor() : empty(tile.tensor.shape(), type);
  }
  double gradient_bound(DType type) const {
    return type == DType::bf16 ? rounding(DType::bf16) + bound() : bound();
  }
};

// What is left out of rows; nothing, as long as it is not set.
struct Out {
  std::vector<int64_t> positive, self, first_range, ranges;
  std::vector<int32_t> columns;
  std::vector<Tensor> tensors;
  LogitExclusions there;

  explicit Out(int64_t rows)
      : positive(static_cast<size_t>(rows), -1),
        self(positive),
        first_range(static_cast<size_t>(rows) + 1) {}
  const LogitExclusions& on(Device device) {
    tensors.clear();
    tensors.push_back(on_device(integers(positive), device));
    tensors.push_back(on_device(integers(self), device));
    tensors.push_back(on_device(integers(first_range), device));
    tensors.push_back(on_device(integers(ranges), device));
    tensors.push_back(on_device(integers(columns), device));
    there = {tensors[0], tensors[1], tensors[2],
             tensors[3].view().reshape({std::ssize(ranges) / 2, 2}), tensors[4]};
    return there;
  }
};

TEST_P(ContrastiveTest, StatisticsMergeToLogSumExp) {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{21, 1},
                             {21, 5},
                             {21, 16},
                             {150, 127},
                             {64, 256},
                             {3, 128},
                             {21, 300},
                             {129, 512},
                             {270, 700}}) {
    for (const double spread : {1.0, 100.0}) {
      Sums of_rows = log_sums(parts(m, n).rows, m), of_columns = log_sums(parts(m, n).columns, n);
      Doubles rows(static_cast<size_t>(m)), columns(static_cast<size_t>(n));
      // Two tiles over the same rows and columns.
      for (const double masked : {0.0, 0.4}) {
        Tile z = logits(m, n, spread, masked);
        Tensor right = sums(m), count = whole(1, parts(m, n));
        Out none(m);
        contrastive_statistics({z.tensor, {}, none.on(device())}, of_rows.view(), of_columns.view(),
                               right, count);
        for (size_t i = 0; i < z.values.size(); ++i) {
          const double e = std::exp(z.values[i]);
          rows[i / columns.size()] += e;
          columns[i % columns.size()] += e;
        }
      }
      const auto check = [&](Sums& sums, const Doubles& e) {
        merge_log_sums(sums.view());
        const Doubles largest = sums.merged_maximum(), total = sums.merged_sum();
        for (size_t i = 0; i < e.size(); ++i)
          EXPECT_NEAR(std::log(total[i]) + largest[i], std::log(e[i]), bound());
      };
      check(of_rows, rows);
      check(of_columns, columns);
    }
  }
}

TEST_P(ContrastiveTest, MaskedRowsLeaveTheStatisticsAlone) {
  Tensor z = filled({1, 33}, dtype(), static_cast<double>(kMaskedLogit));
  Tensor right = sums(1), count = whole(1, parts(1, 33));
  Sums rows{filled({1, 1}, dtype(), 3), filled({1, 1}, DType::f64, 2.5)};
  Out none(1);
  contrastive_statistics({z, {}, none.on(device())}, rows.view(), {}, right, count);
  EXPECT_EQ(to_doubles(rows.maximum)[0], 3);
  EXPECT_EQ(to_doubles(rows.sum)[0], 2.5);
}

// Columns of which no tile has seen anything, and rows of zeros only.
TEST_P(ContrastiveTest, NothingMergesToNothing) {
  for (const int64_t parts : {1, 3}) {
    if (parts > 1 && device() == Device::cpu()) continue;
    Sums nothing = log_sums(parts, 300);
    merge_log_sums(nothing.view());
    EXPECT_EQ(nothing.merged_sum(), Doubles(300, 0));
    EXPECT_EQ(nothing.merged_maximum(), Doubles(300, static_cast<double>(kMaskedLogit)));
  }
}

// Positives of a tile whose first column is column 40 of the matrix: some rows have theirs here,
// some before or behind the tile, some none.
struct Right {
  Out out;
  Doubles values;
  Tensor value_tensor;

  Right(int64_t m, int64_t n, Device device) : out(m) {
    for (int64_t i = 0; i < m; ++i) {
      const int64_t places[] = {40 + (7 * i) % n, 39, 40 + n, -1};
      out.positive[static_cast<size_t>(i)] = places[i % 5 < 2 ? 0 : i % 5 - 1];
      values.push_back(3 - 0.25 * static_cast<double>(i));
    }
    value_tensor = from_doubles(values, {m}, DType::f64, device);
    out.on(device);
  }
  // Place of row i's in the tile, -1 where it is not there.
  int64_t place(size_t i, int64_t n) const {
    const int64_t j = out.positive[i] - 40;
    return j >= 0 && j < n ? j : -1;
  }
};

TEST_P(ContrastiveTest, SoftmaxGradient) {
  for (const auto& [m, n] :
       {std::pair<int64_t, int64_t>{19, 1}, {19, 7}, {19, 32}, {70, 61}, {19, 256}, {19, 700}}) {
    for (const bool both : {false, true}) {
      for (const DType type : gradient_types()) {
        const auto rows = static_cast<size_t>(m);
        Tile z = logits(m, n, 30, 0.2);
        const Right right(m, n, device());
        // Numbers that are exact in every type.
        Doubles factors(rows), tops(rows);
        for (size_t i = 0; i < rows; ++i) {
          factors[i] = i == 2 ? 0 : 0.25 + 0.125 * static_cast<double>(i % 5);
          tops[i] = 31 + 0.25 * static_cast<double>(i % 7);
        }
        Doubles column_factors(static_cast<size_t>(n)), column_tops(column_factors);
        for (size_t j = 0; j < column_tops.size(); ++j) {
          column_factors[j] = 0.5 + 0.125 * static_cast<double>(j % 11);
          column_tops[j] = 30.5 + 0.25 * static_cast<double>(j % 13);
        }
        const Tensor row_max = from_doubles(tops, {m}, dtype(), device());
        const Tensor row_factor = from_doubles(factors, {m}, dtype(), device());
        const auto of_matrix = [&](Doubles of_tile) {
          of_tile.insert(of_tile.begin(), 40, 99);
          return from_doubles(of_tile, {40 + n}, dtype(), device());
        };
        const Tensor column_max = of_matrix(column_tops);
        const Tensor column_factor = of_matrix(column_factors);
        Tensor sum = whole(1, parts(m, n), 1.5), beside = gradient_beside(z, type);
        const TensorView gradient = beside.defined() ? beside.view() : z.tensor.view();
        contrastive_softmax_gradient({z.tensor, {0, 40}, right.out.there}, row_max, row_factor,
                                     both ? column_max.view() : ConstTensorView(),
                                     both ? column_factor.view() : ConstTensorView(),
                                     right.value_tensor, sum, gradient);
        const Doubles result = to_doubles(gradient);
        double expected_sum = 1.5, magnitude = 1.5;
        for (size_t i = 0; i < result.size(); ++i) {
          const size_t row = i / static_cast<size_t>(n);
          const double x = z.values[i];
          const size_t column = i % static_cast<size_t>(n);
          double e = factors[row] * std::exp(x - tops[row]);
          if (both) e += column_factors[column] * std::exp(x - column_tops[column]);
          if (right.place(row, n) == static_cast<int64_t>(i) % n) {
            e = right.values[row];
          } else {
            expected_sum += e * x;
            magnitude += std::fabs(e * x);
          }
          EXPECT_NEAR(result[i], e, gradient_bound(type) * std::fabs(e) + 1e-37);
        }
        EXPECT_NEAR(sums_of_parts(sum)[0], expected_sum, bound() * magnitude);
      }
    }
  }
}

TEST_P(ContrastiveTest, Sigmoid) {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{9, 45}, {1, 1}, {3, 600}, {70, 260}}) {
    for (const DType type : gradient_types()) {
      Tile z = logits(m, n, 60, 0.2);
      const Right right(m, n, device());
      Tensor results = whole(4, parts(m, n), 0.5), beside = gradient_beside(z, type);
      const TensorView gradient = beside.defined() ? beside.view() : z.tensor.view();
      contrastive_sigmoid({z.tensor, {0, 40}, right.out.there}, -5, 0.125, results, gradient);
      const Doubles result = to_doubles(gradient);
      Doubles expected(4, 0.5), magnitude(4, 0.5);
      for (size_t i = 0; i < result.size(); ++i) {
        const size_t row = i / static_cast<size_t>(n);
        const double weight = right.out.positive[row] < 0 ? 0 : 0.125;
        const double y = right.place(row, n) == static_cast<int64_t>(i) % n ? -1 : 1;
        const double x = z.values[i], s = y * (x - 5), e = y * weight / (1 + std::exp(-s));
        const double loss = s > 0 ? s + std::log1p(std::exp(-s)) : std::log1p(std::exp(s));
        const double terms[3] = {weight * loss, e, e * x};
        for (size_t k = 0; k < 3; ++k) {
          expected[k] += terms[k];
          magnitude[k] += std::fabs(terms[k]);
        }
        EXPECT_NEAR(result[i], e, gradient_bound(type) * std::fabs(e) + 1e-37);
      }
      const Doubles totals = sums_of_parts(results);
      for (size_t k = 0; k < 4; ++k)
        EXPECT_NEAR(totals[k], expected[k], bound() * magnitude[k]) << k;
    }
  }
}

// Own, masked and right entries, in tiles whose edges cut through the ranges, by every pass.
TEST_P(ContrastiveTest, EveryPassLeavesTheSameOut) {
  const int64_t rows = 37, columns = 900;
  const RandomKey key = RandomKey(23).fold(1);
  Out out(rows);
  std::vector<std::set<int64_t>> masked(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const auto u = static_cast<uint64_t>(i);
    const auto pick = [&](uint64_t k) {
      return static_cast<int64_t>(key.fold(u).uniform(k) * static_cast<double>(columns));
    };
    if (i % 6 != 5) out.positive[u] = pick(0);
    if (i % 3 != 0) out.self[u] = pick(1);
    // Rows with no range, with short ones, with one longer than a block has threads; they overlap.
    for (uint64_t r = 0; r < u % 4; ++r) {
      std::set<int64_t> range;
      for (uint64_t k = 0; k < (u % 7 == 2 ? 600u : 5u); ++k)
        range.insert(pick(10 + r % 2 * 3 + k));
      if (r == 1 && out.positive[u] >= 0) range.insert(out.positive[u]);
      out.ranges.push_back(std::ssize(out.columns));
      for (const int64_t c : range) out.columns.push_back(static_cast<int32_t>(c));
      out.ranges.push_back(std::ssize(out.columns));
      masked[u].insert(range.begin(), range.end());
    }
    out.first_range[u + 1] = std::ssize(out.ranges) / 2;
  }
  const LogitExclusions& exclusions = out.on(device());
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{37, 900}, {10, 64}, {1, 300}}) {
    const LogitParts of_tile = parts(m, n);
    Tensor count = whole(1, of_tile, 2), taken = sums(rows, -7);
    Tensor all = whole(4, of_tile), sum = whole(1, of_tile);
    Sums of_rows = log_sums(of_tile.rows, rows);
    const Tensor zero = vector(rows, 0), one = vector(rows, 1), right = sums(rows, -0.5);
    Doubles expected_taken(rows, -7), expected_sum(rows);
    double expected_masked = 0;
    for (int64_t i = 0; i < rows; i += m) {
      for (int64_t j = 0; j < columns; j += n) {
        const int64_t height = std::min(m, rows - i), width = std::min(n, columns - j);
        Tile of_statistics = logits(height, width, 8, 0), of_sigmoid = logits(height, width, 8, 0);
        Tile z = logits(height, width, 8, 0);
        contrastive_statistics({of_statistics.tensor, {i, j}, exclusions}, of_rows.view(), {},
                               taken, count);
        contrastive_sigmoid({of_sigmoid.tensor, {i, j}, exclusions}, 0, 1, all, of_sigmoid.tensor);
        contrastive_softmax_gradient({z.tensor, {i, j}, exclusions}, zero, one, {}, {}, right, sum,
                                     z.tensor);
        const Doubles softmax = to_doubles(z.tensor), sigmoid = to_doubles(of_sigmoid.tensor);
        for (int64_t a = 0; a < height; ++a) {
          const auto row = static_cast<size_t>(i + a);
          for (int64_t b = 0; b < width; ++b) {
            const auto at = static_cast<size_t>(a * width + b);
            const double x = z.values[at];
            const bool is_right = out.positive[row] == j + b, own = out.self[row] == j + b;
            const bool left_out = own || masked[row].contains(j + b);
            double e = left_out ? 0 : std::exp(x), p = e / (1 + e);
            if (is_right) {
              expected_taken[row] = x;
              e = -0.5;
              p = -1 / (1 + std::exp(x));
            } else {
              expected_sum[row] += e;
              if (left_out && !own) ++expected_masked;
            }
            if (out.positive[row] < 0) p = 0;
            ASSERT_NEAR(softmax[at], e, bound() * std::fabs(e)) << row << " " << j + b;
            ASSERT_NEAR(sigmoid[at], p, bound()) << row << " " << j + b;
          }
        }
      }
    }
    EXPECT_EQ(to_doubles(taken), expected_taken);
    EXPECT_EQ(sums_of_parts(count)[0], 2 + expected_masked);
    EXPECT_EQ(sums_of_parts(all)[3], expected_masked);
    merge_log_sums(of_rows.view());
    const Doubles top = of_rows.merged_maximum(), total = of_rows.merged_sum();
    for (size_t i = 0; i < total.size(); ++i)
      EXPECT_NEAR(std::log(total[i]) + top[i], std::log(expected_sum[i]), bound());
  }
}

// Threads split rows and columns but never a sum.
TEST_P(ContrastiveTest, SameBitsForAnyNumberOfThreads) {
  const int64_t m = 70, n = 400;
  expect_same_for_any_threads([&] {
    Tile z = logits(m, n, 40, 0.1);
    std::vector<Tensor> r;
    const LogitParts of_tile = parts(m, n);
    Sums rows = log_sums(of_tile.rows, m), columns = log_sums(of_tile.columns, 40 + n);
    const Right right(m, n, device());
    Tile again = logits(m, n, 40, 0.1);
    Tensor logit = sums(m), count = whole(1, of_tile), sum = whole(1, of_tile);
    contrastive_statistics({again.tensor, {0, 40}, right.out.there}, rows.view(), columns.view(),
                           logit, count);
    merge_log_sums(rows.view());
    contrastive_softmax_gradient({z.tensor, {0, 40}, right.out.there},
                                 rows.maximum.view().slice(0, 1), vector(m, 1), {}, {},
                                 right.value_tensor, sum, z.tensor);
    for (Tensor* t : {&rows.maximum, &rows.sum, &columns.maximum, &columns.sum, &sum, &z.tensor})
      r.push_back(std::move(*t));
    return r;
  });
}

AMUR_KERNEL_CASES(ContrastiveTest, all_targets(), DType::f32, DType::f64);

}  // namespace
}  // namespace amur::test
