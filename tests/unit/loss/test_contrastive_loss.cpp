// The loss stage on all ranks of this run against the naive matrix, and what it must refuse or
// bear.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "src/core/random.h"
#include "src/train/loss/contrastive_loss.h"
#include "tests/unit/loss/dp_group.h"
#include "tests/unit/loss/naive_contrastive.h"

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

// The global batch, the same on every rank. Documents stand in query order, positives at different
// places among the negatives; those of query i are first_document[i] .. first_document[i+1]-1.
struct Global {
  naive::Batch batch;
  std::vector<size_t> first_document{0};
};

Global make_batch(int queries, const Content& content, uint64_t seed, double pull = 0.5) {
  const RandomKey key = RandomKey(seed).fold(static_cast<uint64_t>(RandomPurpose::probe));
  Global global;
  naive::Batch& b = global.batch;
  for (int i = 0; i < queries; ++i) {
    const auto u = static_cast<uint64_t>(i);
    const RandomKey own = key.fold(u);
    b.queries.push_back(unit_vector(own.fold(0), pull));
    b.query_ids.push_back(content.duplicates ? 1000 + u % 7 : 1000 + u);
    const int negatives = content.negatives == 0 ? 0 : i % (content.negatives + 1);
    for (int d = 0; d <= negatives; ++d) {
      const uint64_t n = b.documents.size();
      if (d == i % (negatives + 1)) b.positive.push_back(static_cast<int>(n));
      b.documents.push_back(unit_vector(own.fold(static_cast<uint64_t>(1 + d)), pull));
      b.document_ids.push_back(content.duplicates ? 2000 + (n * 5) % 13 : 2000 + n);
    }
    b.others.emplace_back();
    if (content.others && i % 3 == 0) b.others.back() = {2000 + (u * 7) % 11, 2001, 99};
    global.first_document.push_back(b.documents.size());
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
Tensor to_tensor(const naive::Matrix& m, size_t first, size_t count) {
  Tensor t({static_cast<int64_t>(count), kWidth}, dtype_of<T>);
  for (size_t i = 0; i < count; ++i)
    for (size_t d = 0; d < kWidth; ++d) t.as<T>()[i * kWidth + d] = static_cast<T>(m[first + i][d]);
  return t;
}

template <class T>
Local local_part(const Global& global, const std::vector<int>& counts, int rank) {
  const naive::Batch& b = global.batch;
  Local l;
  for (int r = 0; r < rank; ++r)
    l.first_query += static_cast<size_t>(counts[static_cast<size_t>(r)]);
  const size_t queries = static_cast<size_t>(counts[static_cast<size_t>(rank)]);
  const size_t end = l.first_query + queries;
  l.first_document = global.first_document[l.first_query];
  const size_t documents = global.first_document[end] - l.first_document;
  l.queries = to_tensor<T>(b.queries, l.first_query, queries);
  l.documents = to_tensor<T>(b.documents, l.first_document, documents);
  l.dq = Tensor(l.queries.shape(), dtype_of<T>);
  l.dk = Tensor(l.documents.shape(), dtype_of<T>);
  for (size_t d = 0; d < documents; ++d)
    l.document_ids.push_back(b.document_ids[l.first_document + d]);
  for (size_t i = l.first_query; i < end; ++i) {
    l.query_ids.push_back(b.query_ids[i]);
    l.positive.push_back(b.positive[i] - static_cast<int32_t>(l.first_document));
    l.others.insert(l.others.end(), b.others[i].begin(), b.others[i].end());
    l.other_first.push_back(static_cast<int32_t>(l.others.size()));
  }
  return l;
}

struct Squares {
  double difference = 0, reference = 0;
};
template <class T>
void compare(const Tensor& mine, const naive::Matrix& reference, size_t first, Squares& squares) {
  for (int64_t i = 0; i < mine.shape()[0]; ++i) {
    for (int64_t d = 0; d < kWidth; ++d) {
      const double x = reference[first + static_cast<size_t>(i)][static_cast<size_t>(d)];
      const double y = static_cast<double>(mine.as<T>()[i * kWidth + d]);
      squares.difference += (x - y) * (x - y);
      squares.reference += x * x;
    }
  }
}
// ||g - g*|| / ||g*|| over all ranks.
template <class T>
double gradient_error(const Local& l, const naive::Result& reference, Communicator& dp) {
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
  naive::Options options;
  double log_scale = std::log(12.0), bias = 0;
};

std::vector<Case> kinds() {
  std::vector<Case> cases(5);
  cases[0].name = "one direction";
  cases[0].config.symmetric = false;
  cases[1].name = "symmetric";
  cases[1].options.kind = naive::Kind::symmetric;
  cases[2].name = "siglip";
  cases[3].name = "all texts";
  cases[4].name = "siglip, all texts";
  for (size_t i : {2, 4}) {
    cases[i].config.kind = LossKind::siglip;
    cases[i].options.kind = naive::Kind::siglip;
    cases[i].bias = -3;
  }
  for (size_t i : {3, 4}) {
    cases[i].config.candidates = LossCandidates::all;
    cases[i].options.all_texts = true;
  }
  for (Case& c : cases) {
    c.options.log_scale = c.log_scale;
    c.options.bias = c.bias;
  }
  return cases;
}

template <class T>
void expect_equal(const Case& c, const Global& global, const std::vector<int>& counts,
                  double bound) {
  Communicator& dp = dp_group();
  Local l = local_part<T>(global, counts, dp.rank());
  const naive::Result expected = naive::contrastive(global.batch, c.options);
  const ContrastiveOutput out =
      contrastive_loss(c.config, c.log_scale, c.bias, l.input(), l.dq, l.dk, dp);
  EXPECT_LE(gradient_error<T>(l, expected, dp), bound);
  EXPECT_LE(std::fabs(out.loss - expected.loss), bound * std::max(1e-3, expected.loss));
  EXPECT_LE(std::fabs(out.scale_gradient - expected.dt), bound * expected.dt_magnitude);
  EXPECT_LE(std::fabs(out.bias_gradient - (c.config.kind == LossKind::siglip ? expected.db : 0)),
            bound * std::max(1.0, std::fabs(expected.db)));
  EXPECT_EQ(out.masked, expected.masked);
  EXPECT_EQ(out.queries, std::ssize(global.batch.queries));
  EXPECT_EQ(out.documents, std::ssize(global.batch.documents));
}

TEST(ContrastiveLoss, EqualsTheWholeMatrix) {
  const int ranks = dp_group().size();
  const Content contents[] = {{}, {true, 0, false}, {false, 3, false}, {true, 2, true}};
  const std::pair<int64_t, int64_t> tiles[] = {{256, 1024}, {7, 5}, {3, 40}};
  for (const Content& content : contents) {
    for (Case c : kinds()) {
      for (const bool mask : {true, false}) {
        if (!mask && !content.duplicates) continue;
        c.config.mask_duplicates = mask;
        c.options.mask = mask;
        const Global global = make_batch(29, content, 5);
        for (Split how : {Split::even, Split::uneven, Split::empty}) {
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

TEST(ContrastiveLoss, SameBitsWhenRepeated) {
  Communicator& dp = dp_group();
  const Global global = make_batch(40, {true, 2, true}, 11);
  for (const Case& c : kinds()) {
    Local a = local_part<float>(global, split(Split::uneven, 40, dp.size()), dp.rank());
    Local b = local_part<float>(global, split(Split::uneven, 40, dp.size()), dp.rank());
    const auto x = contrastive_loss(c.config, 3, -2, a.input(), a.dq, a.dk, dp);
    const auto y = contrastive_loss(c.config, 3, -2, b.input(), b.dq, b.dk, dp);
    EXPECT_EQ(x.loss, y.loss) << c.name;
    EXPECT_EQ(x.scale_gradient, y.scale_gradient) << c.name;
    EXPECT_EQ(std::memcmp(a.dq.view().raw(), b.dq.view().raw(), a.dq.bytes()), 0) << c.name;
    EXPECT_EQ(std::memcmp(a.dk.view().raw(), b.dk.view().raw(), a.dk.bytes()), 0) << c.name;
    // And the same loss on every rank.
    EXPECT_EQ(dp.max(x.loss), -dp.max(-x.loss)) << c.name;
  }
}

// The bound must reject what other schemes compute.
TEST(ContrastiveLoss, WrongSchemesFailTheBound) {
  Communicator& dp = dp_group();
  const int queries = 30;
  const Global global = make_batch(queries, {}, 3);
  Case c = kinds()[1];
  const std::vector<int> counts = split(Split::even, queries, dp.size());
  Local l = local_part<double>(global, counts, dp.rank());
  contrastive_loss(c.config, c.log_scale, c.bias, l.input(), l.dq, l.dk, dp);
  EXPECT_LE(gradient_error<double>(l, naive::contrastive(global.batch, c.options), dp), kBound64);

  // The mean over four ranks of uneven local means.
  naive::Options uneven = c.options;
  for (int rows : {12, 4, 9, 5})
    for (int i = 0; i < rows; ++i) uneven.row_weights.push_back(1.0 / (4 * rows));
  EXPECT_GT(gradient_error<double>(l, naive::contrastive(global.batch, uneven), dp), 1e-2);

  // Naive accumulation: chunks that see only themselves.
  naive::Result naive_sum;
  naive_sum.dq.assign(queries, std::vector<double>(kWidth));
  naive_sum.dk = naive_sum.dq;
  const size_t chunk = 10;
  for (size_t first = 0; first < queries; first += chunk) {
    naive::Batch part;
    for (size_t i = first; i < first + chunk; ++i) {
      part.queries.push_back(global.batch.queries[i]);
      part.documents.push_back(global.batch.documents[i]);
      part.query_ids.push_back(global.batch.query_ids[i]);
      part.document_ids.push_back(global.batch.document_ids[i]);
      part.positive.push_back(static_cast<int>(i - first));
      part.others.emplace_back();
    }
    const naive::Result r = naive::contrastive(part, c.options);
    for (size_t i = 0; i < chunk; ++i) {
      for (size_t d = 0; d < kWidth; ++d) {
        naive_sum.dq[first + i][d] = r.dq[i][d] / 3;
        naive_sum.dk[first + i][d] = r.dk[i][d] / 3;
      }
    }
  }
  EXPECT_GT(gradient_error<double>(l, naive_sum, dp), 1e-2);
}

TEST(ContrastiveLoss, ScaleAndBiasGradientsAreDifferences) {
  Communicator& dp = dp_group();
  const Global global = make_batch(23, {true, 2, true}, 8);
  const std::vector<int> counts = split(Split::uneven, 23, dp.size());
  const double h = 1e-5;
  for (const Case& c : kinds()) {
    const auto run = [&](double log_scale, double bias) {
      Local l = local_part<double>(global, counts, dp.rank());
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
TEST(ContrastiveLoss, KeepsRelativePrecisionWhenSolved) {
  Communicator& dp = dp_group();
  Global global = make_batch(8, {}, 21, 0);
  for (size_t i = 0; i < 8; ++i) {
    global.batch.queries[i].assign(kWidth, 0);
    global.batch.queries[i][i] = 1;
    global.batch.documents[i] = global.batch.queries[i];
  }
  Case c = kinds()[1];
  c.log_scale = c.options.log_scale = std::log(12.0);
  const std::vector<int> counts = split(Split::even, 8, dp.size());
  expect_equal<float>(c, global, counts, 2e-6);
  // Further out even the double reference cancels: every row has seven equal wrong candidates.
  Local l = local_part<float>(global, counts, dp.rank());
  const auto out = contrastive_loss(c.config, std::log(60.0), 0, l.input(), l.dq, l.dk, dp);
  EXPECT_NEAR(out.loss / (7 * std::exp(-60.0)), 1, 1e-6);
}

TEST(ContrastiveLoss, NothingToTellApartGivesZero) {
  Communicator& dp = dp_group();
  // One query with one document; then many copies of one pair: every other entry is masked.
  for (int queries : {1, 12}) {
    Global global = make_batch(queries, {}, 4);
    for (uint64_t& id : global.batch.document_ids) id = 7;
    for (Case c : kinds()) {
      if (c.config.kind == LossKind::siglip) continue;
      for (uint64_t& id : global.batch.query_ids) id = 8;
      Local l = local_part<float>(global, split(Split::empty, queries, dp.size()), dp.rank());
      const auto out = contrastive_loss(c.config, c.log_scale, 0, l.input(), l.dq, l.dk, dp);
      EXPECT_EQ(out.loss, 0) << c.name;
      EXPECT_EQ(out.scale_gradient, 0) << c.name;
      for (const Tensor* g : {&l.dq, &l.dk})
        for (int64_t i = 0; i < g->elements(); ++i) ASSERT_EQ(g->as<float>()[i], 0) << c.name;
    }
  }
}

TEST(ContrastiveLoss, EmptyGlobalBatch) {
  Communicator& dp = dp_group();
  const Global global = make_batch(0, {}, 4);
  for (const Case& c : kinds()) {
    Local l = local_part<float>(global, split(Split::even, 0, dp.size()), dp.rank());
    const auto out = contrastive_loss(c.config, 1, 0, l.input(), l.dq, l.dk, dp);
    EXPECT_EQ(out.loss, 0);
    EXPECT_EQ(out.queries, 0);
  }
}

TEST(ContrastiveLoss, NotFiniteIsSeenByAllRanks) {
  Communicator& dp = dp_group();
  const Global global = make_batch(24, {false, 1, false}, 4);
  for (const Case& c : kinds()) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Local l = local_part<float>(global, split(Split::even, 24, dp.size()), dp.rank());
      if (dp.rank() == dp.size() - 1) l.queries.as<float>()[3] = bad;
      const auto out = contrastive_loss(c.config, 1, 0, l.input(), l.dq, l.dk, dp);
      EXPECT_FALSE(std::isfinite(out.loss)) << c.name << " " << bad;
    }
  }
}

TEST(ContrastiveLoss, MemoryIsLinearInTheBatch) {
  Communicator& dp = dp_group();
  for (Case c : kinds()) {
    c.config.tile_rows = 32;
    c.config.tile_columns = 64;
    double bytes[3];
    for (int k = 0; k < 3; ++k) {
      const int queries = 480 << k;
      // Many duplicates: a list of masked entries would grow with the square.
      const Global global = make_batch(queries, {true, 0, false}, 2);
      Local l = local_part<float>(global, split(Split::even, queries, dp.size()), dp.rank());
      const size_t before = memory_use(Device::cpu()).now;
      bytes[k] = static_cast<double>(
          contrastive_loss(c.config, 1, -1, l.input(), l.dq, l.dk, dp).peak_bytes);
      EXPECT_EQ(memory_use(Device::cpu()).now, before) << c.name;
    }
    const double first = bytes[1] - bytes[0], second = bytes[2] - bytes[1];
    EXPECT_GT(first, 480 * 8.0) << c.name;
    EXPECT_NEAR(second / first, 2, 0.2) << c.name;
  }
}

}  // namespace
}  // namespace amur
