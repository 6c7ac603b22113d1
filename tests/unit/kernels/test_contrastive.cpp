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
  Tensor maxima(int64_t n) const { return vector(n, static_cast<double>(kMaskedLogit)); }
  Tensor sums(int64_t n, double value = 0) const { return filled({n}, DType::f64, value); }
  double bound() const { return dtype() == DType::f32 ? 5e-6 : 5e-14; }
};

TEST_P(ContrastiveTest, StatisticsMergeToLogSumExp) {
  for (const int64_t n : {1, 5, 16, 127, 128, 300}) {
    for (const double spread : {1.0, 100.0}) {
      const int64_t m = 21;
      Tensor row_max = maxima(m), row_sum = sums(m);
      Tensor column_max = maxima(n), column_sum = sums(n);
      Doubles rows(m), columns(static_cast<size_t>(n));
      // Two tiles over the same rows and columns.
      for (const double masked : {0.0, 0.4}) {
        const Tile z = logits(m, n, spread, masked);
        contrastive_statistics(z.tensor, row_max, row_sum, column_max, column_sum);
        for (size_t i = 0; i < z.values.size(); ++i) {
          const double e = std::exp(z.values[i]);
          rows[i / columns.size()] += e;
          columns[i % columns.size()] += e;
        }
      }
      const auto check = [&](const Tensor& maximum, const Tensor& sum, const Doubles& e) {
        const Doubles largest = to_doubles(maximum), total = to_doubles(sum);
        for (size_t i = 0; i < e.size(); ++i)
          EXPECT_NEAR(std::log(total[i]) + largest[i], std::log(e[i]), bound());
      };
      check(row_max, row_sum, rows);
      check(column_max, column_sum, columns);
    }
  }
}

TEST_P(ContrastiveTest, MaskedRowsLeaveTheStatisticsAlone) {
  const Tensor z = filled({1, 33}, dtype(), static_cast<double>(kMaskedLogit));
  Tensor row_max = vector(1, 3), row_sum = sums(1, 2.5);
  contrastive_statistics(z, row_max, row_sum, {}, {});
  EXPECT_EQ(to_doubles(row_max)[0], 3);
  EXPECT_EQ(to_doubles(row_sum)[0], 2.5);
}

// Positives of a tile whose first column is column 40 of the matrix: some rows have theirs here,
// some before or behind the tile, some none.
struct Right {
  std::vector<int64_t> columns;
  Doubles values;
  Tensor column_tensor, value_tensor;
  TilePositives view;

  Right(int64_t m, int64_t n, Device device) {
    for (int64_t i = 0; i < m; ++i) {
      const int64_t places[] = {40 + (7 * i) % n, 39, 40 + n, -1};
      columns.push_back(places[i % 5 < 2 ? 0 : i % 5 - 1]);
      values.push_back(3 - 0.25 * static_cast<double>(i));
    }
    column_tensor = on_device(test::integers(columns), device);
    value_tensor = from_doubles(values, {m}, DType::f64, device);
    view = {column_tensor, 40, value_tensor};
  }
  // Place of row i's in the tile, -1 where it is not there.
  int64_t place(size_t i, int64_t n) const {
    const int64_t j = columns[i] - 40;
    return j >= 0 && j < n ? j : -1;
  }
};

TEST_P(ContrastiveTest, SoftmaxGradient) {
  for (const int64_t n : {1, 7, 32, 61, 700}) {
    for (const bool both : {false, true}) {
      const int64_t m = 19;
      Tile g = logits(m, n, 30, 0.2);
      const Right right(m, n, device());
      Doubles factors(m, 0.25);
      factors[2] = 0;
      const Tensor row_max = vector(m, 31), column_max = vector(n, 30.5);
      const Tensor row_factor = from_doubles(factors, {m}, dtype(), device());
      const Tensor column_factor = vector(n, 0.5);
      Tensor sum = sums(1, 1.5);
      contrastive_softmax_gradient(
          g.tensor, row_max, row_factor, both ? column_max.view() : ConstTensorView(),
          both ? column_factor.view() : ConstTensorView(), right.view, sum);
      const Doubles result = to_doubles(g.tensor);
      double expected_sum = 1.5, magnitude = 1.5;
      for (size_t i = 0; i < result.size(); ++i) {
        const size_t row = i / static_cast<size_t>(n);
        const double x = g.values[i];
        double e = factors[row] * std::exp(x - 31);
        if (both) e += 0.5 * std::exp(x - 30.5);
        expected_sum += e * x;
        magnitude += std::fabs(e * x);
        if (right.place(row, n) == static_cast<int64_t>(i) % n) e = right.values[row];
        EXPECT_NEAR(result[i], e, bound() * std::fabs(e) + 1e-37);
      }
      EXPECT_NEAR(to_doubles(sum)[0], expected_sum, bound() * magnitude);
    }
  }
}

TEST_P(ContrastiveTest, Sigmoid) {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{9, 45}, {1, 1}, {3, 600}}) {
    Tile g = logits(m, n, 60, 0.2);
    const Right right(m, n, device());
    Tensor results = sums(3, 0.5);
    contrastive_sigmoid(g.tensor, -5, 0.125, right.view, results);
    const Doubles result = to_doubles(g.tensor);
    Doubles expected(3, 0.5), magnitude(3, 0.5);
    for (size_t i = 0; i < result.size(); ++i) {
      const size_t row = i / static_cast<size_t>(n);
      const double weight = right.columns[row] < 0 ? 0 : 0.125;
      const auto add = [&](double x, double loss, double e) {
        const double terms[3] = {loss, e, e * x};
        for (size_t k = 0; k < 3; ++k) {
          expected[k] += terms[k];
          magnitude[k] += std::fabs(terms[k]);
        }
      };
      const double x = g.values[i], s = x - 5;
      double e = weight / (1 + std::exp(-s));
      add(x, weight * (s > 0 ? s + std::log1p(std::exp(-s)) : std::log1p(std::exp(s))), e);
      if (right.place(row, n) == static_cast<int64_t>(i) % n) {
        const double z = right.values[row];
        e = -weight / (1 + std::exp(z - 5));
        add(z, weight * std::log1p(std::exp(5 - z)), e);
      }
      EXPECT_NEAR(result[i], e, bound() * std::fabs(e) + 1e-37);
    }
    for (size_t k = 0; k < 3; ++k)
      EXPECT_NEAR(to_doubles(results)[k], expected[k], bound() * magnitude[k]) << k;
  }
}

// Own, masked and right entries, in tiles whose edges cut through the ranges.
TEST_P(ContrastiveTest, Exclude) {
  const int64_t rows = 37, columns = 900;
  const RandomKey key = RandomKey(23).fold(1);
  std::vector<int64_t> positive, self, first_range{0}, ranges;
  std::vector<int32_t> named;
  std::vector<std::set<int64_t>> masked(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const auto u = static_cast<uint64_t>(i);
    const auto pick = [&](uint64_t k) {
      return static_cast<int64_t>(key.fold(u).uniform(k) * static_cast<double>(columns));
    };
    positive.push_back(i % 6 == 5 ? -1 : pick(0));
    self.push_back(i % 3 == 0 ? -1 : pick(1));
    // Rows with no range, with short ones, with one longer than a block has threads; they overlap.
    for (uint64_t r = 0; r < u % 4; ++r) {
      std::set<int64_t> range;
      for (uint64_t k = 0; k < (u % 7 == 2 ? 600u : 5u); ++k)
        range.insert(pick(10 + r % 2 * 3 + k));
      if (r == 1 && positive.back() >= 0) range.insert(positive.back());
      ranges.push_back(std::ssize(named));
      for (const int64_t c : range) named.push_back(static_cast<int32_t>(c));
      ranges.push_back(std::ssize(named));
      masked[u].insert(range.begin(), range.end());
    }
    first_range.push_back(std::ssize(ranges) / 2);
  }
  const Tensor tensors[] = {integers(positive), integers(self), integers(first_range),
                            integers(ranges), integers(named)};
  const LogitExclusions exclusions{tensors[0], tensors[1], tensors[2],
                                   tensors[3].view().reshape({std::ssize(ranges) / 2, 2}),
                                   tensors[4]};
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{37, 900}, {10, 64}, {1, 300}}) {
    Tensor count = sums(1, 2), taken = sums(rows, -7);
    double expected_count = 2;
    Doubles expected_taken(rows, -7);
    for (int64_t i = 0; i < rows; i += m) {
      for (int64_t j = 0; j < columns; j += n) {
        const int64_t height = std::min(m, rows - i), width = std::min(n, columns - j);
        Tile z = logits(height, width, 20, 0);
        const bool first = i + j == 0;
        contrastive_exclude(z.tensor, {i, j}, exclusions, taken.view().slice(i, height),
                            first ? count.view() : TensorView());
        const Doubles result = to_doubles(z.tensor);
        for (int64_t a = 0; a < height; ++a) {
          for (int64_t b = 0; b < width; ++b) {
            const auto row = static_cast<size_t>(i + a);
            double& x = z.values[static_cast<size_t>(a * width + b)];
            if (positive[row] == j + b) expected_taken[row] = x;
            const bool right = positive[row] == j + b, own = self[row] == j + b;
            const bool out = masked[row].contains(j + b);
            if (right || own || out) x = static_cast<double>(kMaskedLogit);
            if (first && out && !right && !own) ++expected_count;
          }
        }
        // The masked value in the type of the tile.
        expect_near(result, z.values, 1e-6, "entries");
      }
    }
    EXPECT_EQ(to_doubles(taken), expected_taken);
    EXPECT_EQ(to_doubles(count)[0], expected_count);
  }
}

// Threads split rows and columns but never a sum.
TEST_P(ContrastiveTest, SameBitsForAnyNumberOfThreads) {
  const int64_t m = 70, n = 400;
  expect_same_for_any_threads([&] {
    Tile z = logits(m, n, 40, 0.1);
    std::vector<Tensor> r;
    r.push_back(maxima(m));
    r.push_back(sums(m));
    r.push_back(maxima(n));
    r.push_back(sums(n));
    contrastive_statistics(z.tensor, r[0], r[1], r[2], r[3]);
    r.push_back(sums(1));
    contrastive_softmax_gradient(z.tensor, r[0], vector(m, 1), {}, {}, Right(m, n, device()).view,
                                 r[4]);
    r.push_back(std::move(z.tensor));
    return r;
  });
}

AMUR_KERNEL_CASES(ContrastiveTest, all_targets(), DType::f32, DType::f64);

}  // namespace
}  // namespace amur::test
