// The loss stage on all ranks of this run against the materialised matrix, and what it must
// refuse or bear.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "src/core/random.h"
#include "src/train/loss/contrastive_loss.h"
#include "src/train/loss/reference_loss.h"
#include "tests/support/devices.h"
#include "tests/unit/loss/dp_group.h"

namespace amur {
namespace {

constexpr int kWidth = 11;
constexpr double kBound64 = 1e-12, kBound32 = 1e-5;

struct Content {
  bool duplicates = false;  // equal queries and equal documents
  int negatives = 0;        // up to this many hard negatives a query
  bool others = false;      // further right documents
};

// Queries of each rank.
enum class Split { even, uneven, empty };
std::vector<int> split(Split how, int queries, int ranks) {
  std::vector<int> counts(static_cast<size_t>(ranks));
  int left = queries;
  for (int r = 0; r < ranks; ++r) {
    int share = left / (ranks - r);
    if (how == Split::uneven) share = std::min(left, share + 2 * (r % 3) - 1);
    if (how == Split::empty && r % 2 == 0 && r + 1 < ranks) share = 0;
    if (r + 1 == ranks) share = left;
    counts[static_cast<size_t>(r)] = share;
    left -= share;
  }
  return counts;
}

std::vector<double> unit_vector(RandomKey key, double pull_to_first) {
  std::vector<double> v(kWidth);
  double square = 0;
  for (int d = 0; d < kWidth; ++d) {
    v[static_cast<size_t>(d)] = key.normal(static_cast<uint64_t>(d)) + (d == 0 ? pull_to_first : 0);
    square += v[static_cast<size_t>(d)] * v[static_cast<size_t>(d)];
  }
  // To f32, so that both precisions see the same numbers.
  for (double& x : v) x = static_cast<float>(x / std::sqrt(square));
  return v;
}

void add_row(ReferenceRows& rows, const std::vector<double>& values) {
  rows.values.insert(rows.values.end(), values.begin(), values.end());
  ++rows.rows;
}

// The global batch, the same on every rank. Documents stand in query order, positives at different
// places among the negatives; those of query i are first_document[i] .. first_document[i+1]-1.
struct Global {
  ReferenceBatch batch;
  std::vector<size_t> first_document{0};
};

Global make_batch(int queries, const Content& content, uint64_t seed, double pull = 0.5) {
  const RandomKey key = RandomKey(seed).fold(static_cast<uint64_t>(RandomPurpose::probe));
  Global global;
  ReferenceBatch& b = global.batch;
  b.queries.width = b.documents.width = kWidth;
  for (int i = 0; i < queries; ++i) {
    const auto u = static_cast<uint64_t>(i);
    const RandomKey own = key.fold(u);
    add_row(b.queries, unit_vector(own.fold(0), pull));
    b.query_ids.push_back(content.duplicates ? 1000 + u % 7 : 1000 + u);
    const int negatives = content.negatives == 0 ? 0 : i % (content.negatives + 1);
    for (int d = 0; d <= negatives; ++d) {
      const auto n = static_cast<uint64_t>(b.documents.rows);
      if (d == i % (negatives + 1)) b.positive.push_back(static_cast<int32_t>(n));
      add_row(b.documents, unit_vector(own.fold(static_cast<uint64_t>(1 + d)), pull));
      b.document_ids.push_back(content.duplicates ? 2000 + (n * 5) % 13 : 2000 + n);
    }
    b.other_positives.emplace_back();
    if (content.others && i % 3 == 0) b.other_positives.back() = {2000 + (u * 7) % 11, 2001, 99};
    global.first_document.push_back(static_cast<size_t>(b.documents.rows));
  }
  return global;
}

// What this rank has of a batch, and room for its gradients.
struct Local {
  Tensor queries, documents, dq, dk;
  std::vector<uint64_t> query_ids, document_ids, others;
  std::vector<int32_t> positive, other_first{0};
  size_t first_query = 0, first_document = 0;

  ContrastiveInput input() const {
    return {queries, documents, query_ids, document_ids, positive, other_first, others};
  }
};

template <class T>
Tensor to_tensor(const ReferenceRows& m, size_t first, size_t count, Device device) {
  Tensor t({static_cast<int64_t>(count), kWidth}, dtype_of<T>);
  for (size_t i = 0; i < count * kWidth; ++i)
    t.as<T>()[i] = static_cast<T>(m.values[first * kWidth + i]);
  return on_device(std::move(t), device);
}

template <class T>
Local local_part(const Global& global, const std::vector<int>& counts, int rank, Device device) {
  const ReferenceBatch& b = global.batch;
  Local l;
  for (int r = 0; r < rank; ++r)
    l.first_query += static_cast<size_t>(counts[static_cast<size_t>(r)]);
  const size_t queries = static_cast<size_t>(counts[static_cast<size_t>(rank)]);
  const size_t end = l.first_query + queries;
  l.first_document = global.first_document[l.first_query];
  const size_t documents = global.first_document[end] - l.first_document;
  l.queries = to_tensor<T>(b.queries, l.first_query, queries, device);
  l.documents = to_tensor<T>(b.documents, l.first_document, documents, device);
  l.dq = Tensor(l.queries.shape(), dtype_of<T>, device);
  l.dk = Tensor(l.documents.shape(), dtype_of<T>, device);
  for (size_t d = 0; d < documents; ++d)
    l.document_ids.push_back(b.document_ids[l.first_document + d]);
  for (size_t i = l.first_query; i < end; ++i) {
    l.query_ids.push_back(b.query_ids[i]);
    l.positive.push_back(b.positive[i] - static_cast<int32_t>(l.first_document));
    l.others.insert(l.others.end(), b.other_positives[i].begin(), b.other_positives[i].end());
    l.other_first.push_back(static_cast<int32_t>(l.others.size()));
  }
  return l;
}

struct Squares {
  double difference = 0, reference = 0;
};
template <class T>
void compare(const Tensor& gradient, const std::vector<double>& reference, size_t first,
             Squares& squares) {
  const Tensor mine = copy_on(Device::cpu(), gradient);
  for (int64_t i = 0; i < mine.elements(); ++i) {
    const double x = reference[first * kWidth + static_cast<size_t>(i)];
    const double y = static_cast<double>(mine.as<T>()[i]);
    squares.difference += (x - y) * (x - y);
    squares.reference += x * x;
  }
}
// ||g - g*|| / ||g*|| over all ranks.
template <class T>
double gradient_error(const Local& l, const ReferenceLoss& reference, Communicator& dp) {
  Squares q, k;
  compare<T>(l.dq, reference.dq, l.first_query, q);
  compare<T>(l.dk, reference.dk, l.first_document, k);
  const double floor = 1e-30;
  const double error_q = dp.sum(q.difference) / std::max(floor, dp.sum(q.reference));
  const double error_k = dp.sum(k.difference) / std::max(floor, dp.sum(k.reference));
  return std::sqrt(std::max(error_q, error_k));
}

struct Case {
  std::string name;
  LossConfig config;
  double log_scale = std::log(12.0), bias = 0;
};

ReferenceLoss reference_of(const Case& c, const ReferenceBatch& batch,
                           std::span<const double> row_weights = {}) {
  return reference_loss(c.config, c.log_scale, c.bias, batch, row_weights);
}

std::vector<Case> kinds() {
  std::vector<Case> cases(5);
  cases[0].name = "one direction";
  cases[0].config.symmetric = false;
  cases[1].name = "symmetric";
  cases[2].name = "siglip";
  cases[3].name = "all texts";
  cases[4].name = "siglip, all texts";
  for (size_t i : {2, 4}) {
    cases[i].config.kind = LossKind::siglip;
    cases[i].bias = -3;
  }
  for (size_t i : {3, 4}) cases[i].config.candidates = LossCandidates::all;
  return cases;
}

// On every device of this machine.
class ContrastiveLoss : public ::testing::TestWithParam<Device> {
 protected:
  Device device() const { return GetParam(); }
  template <class T>
  void expect_equal(const Case& c, const Global& global, const std::vector<int>& counts,
                    double bound) const;
};
INSTANTIATE_TEST_SUITE_P(All, ContrastiveLoss, ::testing::ValuesIn(test_devices()), name_of_device);

template <class T>
void ContrastiveLoss::expect_equal(const Case& c, const Global& global,
                                   const std::vector<int>& counts, double bound) const {
  Communicator& dp = dp_group();
  Local l = local_part<T>(global, counts, dp.rank(), device());
  const ReferenceLoss expected = reference_of(c, global.batch);
  const ContrastiveOutput out =
      contrastive_loss(c.config, c.log_scale, c.bias, l.input(), l.dq, l.dk, dp);
  EXPECT_LE(gradient_error<T>(l, expected, dp), bound);
  EXPECT_LE(std::fabs(out.loss - expected.loss), bound * std::max(1e-3, expected.loss));
  EXPECT_LE(std::fabs(out.scale_gradient - expected.scale_gradient),
            bound * expected.scale_magnitude);
  EXPECT_LE(std::fabs(out.bias_gradient -
                      (c.config.kind == LossKind::siglip ? expected.bias_gradient : 0)),
            bound * std::max(1.0, std::fabs(expected.bias_gradient)));
  EXPECT_EQ(out.masked, expected.masked);
  EXPECT_EQ(out.queries, global.batch.queries.rows);
  EXPECT_EQ(out.documents, global.batch.documents.rows);
}

TEST_P(ContrastiveLoss, EqualsTheWholeMatrix) {
  const int ranks = dp_group().size();
  const Content contents[] = {{}, {true, 0, false}, {false, 3, false}, {true, 2, true}};
  std::vector<std::pair<int64_t, int64_t>> tiles = {{0, 0}, {7, 5}, {3, 40}};
  std::vector<Split> splits = {Split::even, Split::uneven, Split::empty};
  if (is_emulated(device())) {
    tiles.pop_back();
    splits = {Split::uneven};
  }
  for (const Content& content : contents) {
    for (Case c : kinds()) {
      for (const bool mask : {true, false}) {
        if (!mask && !content.duplicates) continue;
        c.config.mask_duplicates = mask;
        const Global global = make_batch(29, content, 5);
        for (const Split how : splits) {
          const std::vector<int> counts = split(how, 29, ranks);
          for (const auto& [rows, columns] : tiles) {
            c.config.tile_rows = rows;
            c.config.tile_columns = columns;
            SCOPED_TRACE(
                fmt::format("{}, duplicates {}, negatives {}, others {}, mask {}, split {}, "
                            "tile {} x {}",
                            c.name, content.duplicates, content.negatives, content.others, mask,
                            static_cast<int>(how), rows, columns));
            expect_equal<double>(c, global, counts, kBound64);
            expect_equal<float>(c, global, counts, kBound32);
          }
        }
      }
    }
  }
}

TEST_P(ContrastiveLoss, SameBitsWhenRepeated) {
  Communicator& dp = dp_group();
  const Global global = make_batch(40, {true, 2, true}, 11);
  for (const Case& c : kinds()) {
    Local a = local_part<float>(global, split(Split::uneven, 40, dp.size()), dp.rank(), device());
    Local b = local_part<float>(global, split(Split::uneven, 40, dp.size()), dp.rank(), device());
    const auto x = contrastive_loss(c.config, 3, -2, a.input(), a.dq, a.dk, dp);
    const auto y = contrastive_loss(c.config, 3, -2, b.input(), b.dq, b.dk, dp);
    EXPECT_EQ(x.loss, y.loss) << c.name;
    EXPECT_EQ(x.scale_gradient, y.scale_gradient) << c.name;
    for (Tensor* t : {&a.dq, &b.dq, &a.dk, &b.dk}) *t = on_device(std::move(*t), Device::cpu());
    EXPECT_EQ(std::memcmp(a.dq.view().raw(), b.dq.view().raw(), a.dq.bytes()), 0) << c.name;
    EXPECT_EQ(std::memcmp(a.dk.view().raw(), b.dk.view().raw(), a.dk.bytes()), 0) << c.name;
    // And the same loss on every rank.
    EXPECT_EQ(dp.max(x.loss), -dp.max(-x.loss)) << c.name;
  }
}

// The bound must reject what other schemes compute.
TEST_P(ContrastiveLoss, WrongSchemesFailTheBound) {
  Communicator& dp = dp_group();
  const int queries = 30;
  const Global global = make_batch(queries, {}, 3);
  Case c = kinds()[1];
  const std::vector<int> counts = split(Split::even, queries, dp.size());
  Local l = local_part<double>(global, counts, dp.rank(), device());
  contrastive_loss(c.config, c.log_scale, c.bias, l.input(), l.dq, l.dk, dp);
  EXPECT_LE(gradient_error<double>(l, reference_of(c, global.batch), dp), kBound64);

  // The mean over four ranks of uneven local means.
  std::vector<double> weights;
  for (int rows : {12, 4, 9, 5})
    weights.insert(weights.end(), static_cast<size_t>(rows), 1.0 / (4 * rows));
  EXPECT_GT(gradient_error<double>(l, reference_of(c, global.batch, weights), dp), 1e-2);

  // Naive accumulation: chunks that see only themselves.
  ReferenceLoss naive_sum;
  const int chunk = 10;
  for (int first = 0; first < queries; first += chunk) {
    ReferenceBatch part;
    part.queries.width = part.documents.width = kWidth;
    for (int i = first; i < first + chunk; ++i) {
      const auto row = [&](const ReferenceRows& rows) {
        const auto begin = rows.values.begin() + i * kWidth;
        return std::vector<double>(begin, begin + kWidth);
      };
      add_row(part.queries, row(global.batch.queries));
      add_row(part.documents, row(global.batch.documents));
      part.query_ids.push_back(global.batch.query_ids[static_cast<size_t>(i)]);
      part.document_ids.push_back(global.batch.document_ids[static_cast<size_t>(i)]);
      part.positive.push_back(i - first);
      part.other_positives.emplace_back();
    }
    const ReferenceLoss own = reference_of(c, part);
    for (double g : own.dq) naive_sum.dq.push_back(g / 3);
    for (double g : own.dk) naive_sum.dk.push_back(g / 3);
  }
  EXPECT_GT(gradient_error<double>(l, naive_sum, dp), 1e-2);
}

TEST_P(ContrastiveLoss, ScaleAndBiasGradientsAreDifferences) {
  Communicator& dp = dp_group();
  const Global global = make_batch(23, {true, 2, true}, 8);
  const std::vector<int> counts = split(Split::uneven, 23, dp.size());
  const double h = 1e-5;
  for (const Case& c : kinds()) {
    const auto run = [&](double log_scale, double bias) {
      Local l = local_part<double>(global, counts, dp.rank(), device());
      return contrastive_loss(c.config, log_scale, bias, l.input(), l.dq, l.dk, dp);
    };
    const ContrastiveOutput at = run(c.log_scale, c.bias);
    const double dt =
        (run(c.log_scale + h, c.bias).loss - run(c.log_scale - h, c.bias).loss) / (2 * h);
    EXPECT_NEAR(at.scale_gradient, dt, 1e-7) << c.name;
    const double db =
        (run(c.log_scale, c.bias + h).loss - run(c.log_scale, c.bias - h).loss) / (2 * h);
    EXPECT_NEAR(at.bias_gradient, db, 1e-7) << c.name;
  }
}

// A batch that is nearly solved, at the largest scale: 1 - P must not be lost to rounding.
TEST_P(ContrastiveLoss, KeepsRelativePrecisionWhenSolved) {
  Communicator& dp = dp_group();
  Global global = make_batch(8, {}, 21, 0);
  for (size_t i = 0; i < 8; ++i) {
    std::vector<double>& q = global.batch.queries.values;
    std::fill_n(q.begin() + static_cast<long>(i) * kWidth, kWidth, 0.0);
    q[i * kWidth + i] = 1;
  }
  global.batch.documents.values = global.batch.queries.values;
  Case c = kinds()[1];
  c.log_scale = std::log(12.0);
  const std::vector<int> counts = split(Split::even, 8, dp.size());
  expect_equal<float>(c, global, counts, 2e-6);
  // Further out even the double reference cancels: every row has seven equal wrong candidates.
  Local l = local_part<float>(global, counts, dp.rank(), device());
  const auto out = contrastive_loss(c.config, std::log(60.0), 0, l.input(), l.dq, l.dk, dp);
  EXPECT_NEAR(out.loss / (7 * std::exp(-60.0)), 1, 1e-6);
}

TEST_P(ContrastiveLoss, NothingToTellApartGivesZero) {
  Communicator& dp = dp_group();
  // One query with one document; then many copies of one pair: every other entry is masked.
  for (int queries : {1, 12}) {
    Global global = make_batch(queries, {}, 4);
    for (uint64_t& id : global.batch.document_ids) id = 7;
    for (Case c : kinds()) {
      if (c.config.kind == LossKind::siglip) continue;
      for (uint64_t& id : global.batch.query_ids) id = 8;
      Local l =
          local_part<float>(global, split(Split::empty, queries, dp.size()), dp.rank(), device());
      const auto out = contrastive_loss(c.config, c.log_scale, 0, l.input(), l.dq, l.dk, dp);
      EXPECT_EQ(out.loss, 0) << c.name;
      EXPECT_EQ(out.scale_gradient, 0) << c.name;
      for (const Tensor* there : {&l.dq, &l.dk}) {
        const Tensor g = copy_on(Device::cpu(), *there);
        for (int64_t i = 0; i < g.elements(); ++i) ASSERT_EQ(g.as<float>()[i], 0) << c.name;
      }
    }
  }
}

TEST_P(ContrastiveLoss, EmptyGlobalBatch) {
  Communicator& dp = dp_group();
  const Global global = make_batch(0, {}, 4);
  for (const Case& c : kinds()) {
    Local l = local_part<float>(global, split(Split::even, 0, dp.size()), dp.rank(), device());
    const auto out = contrastive_loss(c.config, 1, 0, l.input(), l.dq, l.dk, dp);
    EXPECT_EQ(out.loss, 0);
    EXPECT_EQ(out.queries, 0);
  }
}

TEST_P(ContrastiveLoss, NotFiniteIsSeenByAllRanks) {
  Communicator& dp = dp_group();
  const Global global = make_batch(24, {false, 1, false}, 4);
  for (const Case& c : kinds()) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Local l = local_part<float>(global, split(Split::even, 24, dp.size()), dp.rank(), device());
      if (dp.rank() == dp.size() - 1) {
        l.queries = on_device(std::move(l.queries), Device::cpu());
        l.queries.as<float>()[3] = bad;
        l.queries = on_device(std::move(l.queries), device());
      }
      const auto out = contrastive_loss(c.config, 1, 0, l.input(), l.dq, l.dk, dp);
      EXPECT_FALSE(std::isfinite(out.loss)) << c.name << " " << bad;
    }
  }
}

TEST_P(ContrastiveLoss, MemoryIsLinearInTheBatch) {
  Communicator& dp = dp_group();
  for (Case c : kinds()) {
    c.config.tile_rows = 32;
    c.config.tile_columns = 64;
    double bytes[3];
    for (int k = 0; k < 3; ++k) {
      const int queries = 480 << k;
      // Many duplicates: a list of masked entries would grow with the square.
      const Global global = make_batch(queries, {true, 0, false}, 2);
      Local l =
          local_part<float>(global, split(Split::even, queries, dp.size()), dp.rank(), device());
      const size_t before = memory_use(device()).now;
      bytes[k] = static_cast<double>(
          contrastive_loss(c.config, 1, -1, l.input(), l.dq, l.dk, dp).peak_bytes);
      EXPECT_EQ(memory_use(device()).now, before) << c.name;
    }
    const double first = bytes[1] - bytes[0], second = bytes[2] - bytes[1];
    EXPECT_GT(first, 480 * 8.0) << c.name;
    EXPECT_NEAR(second / first, 2, 0.2) << c.name;
  }
}

}  // namespace
}  // namespace amur
