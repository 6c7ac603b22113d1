// The loss stage with products in bf16, against double references that round the embeddings and
// that do not, and the memory it states.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "kernels/gemm.h"
#include "src/core/random.h"
#include "src/train/loss/contrastive_loss.h"
#include "src/train/loss/reference_loss.h"
#include "tests/support/devices.h"
#include "tests/unit/loss/dp_group.h"

namespace amur {
namespace {

// Against embeddings rounded alike: what is left is the rounding of the gradients of logits to bf16
// (2^-8 of each at most; where all embeddings have much in common, that part of them does not
// cancel as exactly as it should), and f32.
constexpr double kGradientBound = 4e-3, kLossBound = 2e-6;

// Unit vectors in f32, as an encoder gives them: all of them have something in common, a document
// more with its query, but not so much that nothing is left to learn at a scale of 100.
void fill(ReferenceBatch& batch, int64_t b, int64_t width, uint64_t seed) {
  const RandomKey key = RandomKey(seed).fold(static_cast<uint64_t>(RandomPurpose::probe));
  const auto unit = [&](std::vector<double>& v, ReferenceRows& rows) {
    const double norm = std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
    for (double& x : v) {
      x /= norm;
      rows.values.push_back(static_cast<float>(x));
    }
    ++rows.rows;
    rows.width = width;
  };
  for (int64_t i = 0; i < b; ++i) {
    const RandomKey own = key.fold(static_cast<uint64_t>(i));
    const double root = std::sqrt(static_cast<double>(width));
    std::vector<double> q, k;
    for (int64_t d = 0; d < width; ++d) {
      const auto at = static_cast<uint64_t>(d);
      q.push_back((0.7 * key.normal(at) + own.normal(2 * at)) / root);
    }
    unit(q, batch.queries);
    for (int64_t d = 0; d < width; ++d)
      k.push_back(0.06 * q[static_cast<size_t>(d)] +
                  (0.7 * key.normal(static_cast<uint64_t>(d)) +
                   own.normal(2 * static_cast<uint64_t>(d) + 1)) /
                      root);
    unit(k, batch.documents);
    batch.query_ids.push_back(1000 + static_cast<uint64_t>(i));
    batch.document_ids.push_back(~static_cast<uint64_t>(i));
    batch.positive.push_back(static_cast<int32_t>(i));
    batch.other_positives.emplace_back();
  }
}

struct Case {
  std::string name;
  LossConfig config;
  double scale = 20, bias = 0;
};
std::vector<Case> kinds(double scale) {
  std::vector<Case> cases(4);
  cases[0] = {"one direction", {}, scale};
  cases[0].config.symmetric = false;
  cases[1] = {"symmetric", {}, scale};
  cases[2] = {"siglip", {}, scale, -10};
  cases[2].config.kind = LossKind::siglip;
  cases[3] = {"all texts", {}, scale};
  cases[3].config.candidates = LossCandidates::all;
  for (Case& c : cases) c.config.precision = LossPrecision::bf16;
  return cases;
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double square = 0, reference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    square += (a[i] - b[i]) * (a[i] - b[i]);
    reference += b[i] * b[i];
  }
  return std::sqrt(square / reference);
}

// Relative errors: of the embeddings' gradients, of the loss, of the temperature's gradient against
// the magnitudes of its terms.
struct Errors {
  double queries = 0, documents = 0, loss = 0, scale = 0;
  double largest_gradient() const { return std::max(queries, documents); }
};
Errors errors_of(const ReferenceLoss& got, const ReferenceLoss& want) {
  return {difference(got.dq, want.dq), difference(got.dk, want.dk),
          std::fabs(got.loss - want.loss) / want.loss,
          std::fabs(got.scale_gradient - want.scale_gradient) / want.scale_magnitude};
}

// The loss stage by all ranks, with `counts` queries each; the gradients of all of them.
ReferenceLoss run(const Case& c, const ReferenceBatch& batch, const std::vector<int64_t>& counts,
                  Device device) {
  Communicator& dp = dp_group();
  const int64_t first = std::accumulate(counts.begin(), counts.begin() + dp.rank(), int64_t{0});
  const int64_t own = counts[static_cast<size_t>(dp.rank())], width = batch.queries.width;
  const auto part = [&](const ReferenceRows& rows) {
    Tensor t({own, width}, DType::f32);
    for (int64_t i = 0; i < own * width; ++i)
      t.as<float>()[i] = static_cast<float>(rows.values[static_cast<size_t>(first * width + i)]);
    return on_device(std::move(t), device);
  };
  const Tensor queries = part(batch.queries), documents = part(batch.documents);
  Tensor dq({own, width}, DType::f32, device), dk({own, width}, DType::f32, device);
  std::vector<int32_t> positive(static_cast<size_t>(own));
  std::iota(positive.begin(), positive.end(), 0);
  const auto ids = [&](const std::vector<uint64_t>& all) {
    return std::span(all).subspan(static_cast<size_t>(first), static_cast<size_t>(own));
  };
  const ContrastiveInput input{
      queries, documents, ids(batch.query_ids), ids(batch.document_ids), positive, {}, {}};
  const ContrastiveOutput out =
      contrastive_loss(c.config, std::log(c.scale), c.bias, input, dq, dk, dp);
  ReferenceLoss result;
  result.loss = out.loss;
  result.scale_gradient = out.scale_gradient;
  const auto all = [&](Tensor& mine) {
    mine = on_device(std::move(mine), Device::cpu());
    Tensor whole({batch.queries.rows, width}, DType::f32);
    std::vector<int64_t> rows(counts);
    dp.all_gather(mine, whole, rows);
    dp.synchronize();
    return std::vector<double>(whole.as<float>(), whole.as<float>() + whole.elements());
  };
  result.dq = all(dq);
  result.dk = all(dk);
  return result;
}

std::vector<int64_t> on_last_rank(int64_t b) {
  std::vector<int64_t> counts(static_cast<size_t>(dp_group().size()));
  counts.back() = b;
  return counts;
}

ReferenceLoss reference(Case c, const ReferenceBatch& batch, LossPrecision precision) {
  c.config.precision = precision;
  return reference_loss(c.config, std::log(c.scale), c.bias, batch);
}

class LossPrecisionTest : public ::testing::TestWithParam<Device> {};
INSTANTIATE_TEST_SUITE_P(All, LossPrecisionTest, ::testing::ValuesIn(test_devices()),
                         name_of_device);

TEST_P(LossPrecisionTest, ErrorsAgainstDouble) {
  const bool cpu_alone = GetParam() == Device::cpu() && dp_group().size() == 1;
  for (const auto& [b, width] : {std::pair<int64_t, int64_t>{600, 384}, {160, 384}, {160, 768}}) {
    const bool large = b > 500;
    if (large && !cpu_alone) continue;
    ReferenceBatch batch;
    fill(batch, b, width, 3);
    for (const double scale : {20.0, 100.0}) {
      for (const Case& c : kinds(scale)) {
        if (large && c.name != "symmetric") continue;  // references are slow
        const ReferenceLoss got = run(c, batch, on_last_rank(b), GetParam());
        const Errors alike = errors_of(got, reference(c, batch, LossPrecision::bf16));
        const Errors exact = errors_of(got, reference(c, batch, LossPrecision::fp32));
        if (dp_group().rank() == 0)
          fmt::print(
              "{} x {}, scale {}, {}: gradients {:.1e} {:.1e}, loss {:.1e}, temperature {:.1e}; "
              "unrounded {:.1e} {:.1e} {:.1e} {:.1e}\n",
              b, width, scale, c.name, alike.queries, alike.documents, alike.loss, alike.scale,
              exact.queries, exact.documents, exact.loss, exact.scale);
        EXPECT_LE(alike.largest_gradient(), kGradientBound) << c.name;
        EXPECT_LE(alike.loss, kLossBound) << c.name;
        EXPECT_LE(alike.scale, kLossBound) << c.name;
        // Rounded embeddings move a logit by about scale * 2^-8 / sqrt(width).
        const double logit = scale / 256 / std::sqrt(static_cast<double>(width));
        EXPECT_LE(exact.largest_gradient(), 3e-3 + logit) << c.name;
        EXPECT_LE(exact.loss, 1e-3) << c.name;
        EXPECT_LE(exact.scale, 1e-3 + logit) << c.name;
      }
    }
  }
}

// What must be seen: sums over the unrounded logits in the gradient of the rounded ones.
TEST_P(LossPrecisionTest, SumsOfOtherLogitsFailTheBound) {
  const int64_t b = 128, width = 32;
  ReferenceBatch batch;
  fill(batch, b, width, 5);
  const Case c = kinds(100)[1];
  const ReferenceLoss want = reference(c, batch, LossPrecision::bf16);
  EXPECT_LE(errors_of(run(c, batch, on_last_rank(b), GetParam()), want).largest_gradient(),
            kGradientBound);

  const auto rounded = [](double x) { return static_cast<double>(bf16(static_cast<float>(x))); };
  const auto at = [&](int64_t i, int64_t j) { return static_cast<size_t>(i * b + j); };
  std::vector<double> logits(static_cast<size_t>(b * b)), of_rounded(logits);
  const std::vector<double>&q = batch.queries.values, &k = batch.documents.values;
  for (int64_t i = 0; i < b; ++i)
    for (int64_t j = 0; j < b; ++j)
      for (int64_t d = 0; d < width; ++d) {
        const double x = q[static_cast<size_t>(i * width + d)];
        const double y = k[static_cast<size_t>(j * width + d)];
        logits[at(i, j)] += c.scale * x * y;
        of_rounded[at(i, j)] += c.scale * rounded(x) * rounded(y);
      }
  // The gradient from sums over `sums`, and with the right ones, which shows that all else is
  // right.
  const auto gradient = [&](const std::vector<double>& sums) {
    std::vector<double> rows(static_cast<size_t>(b)), columns(rows);
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < b; ++j) {
        rows[static_cast<size_t>(i)] += std::exp(sums[at(i, j)]);
        columns[static_cast<size_t>(j)] += std::exp(sums[at(i, j)]);
      }
    ReferenceLoss result = want;
    std::fill(result.dq.begin(), result.dq.end(), 0);
    std::fill(result.dk.begin(), result.dk.end(), 0);
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < b; ++j) {
        const double e = std::exp(of_rounded[at(i, j)]);
        const double g = (e / rows[static_cast<size_t>(i)] + e / columns[static_cast<size_t>(j)] -
                          (i == j ? 2 : 0)) /
                         (2 * static_cast<double>(b));
        for (int64_t d = 0; d < width; ++d) {
          const auto x = static_cast<size_t>(i * width + d), y = static_cast<size_t>(j * width + d);
          result.dq[x] += c.scale * g * rounded(k[y]);
          result.dk[y] += c.scale * g * rounded(q[x]);
        }
      }
    return errors_of(result, want).largest_gradient();
  };
  EXPECT_LE(gradient(of_rounded), 1e-11);
  EXPECT_GT(gradient(logits), 2 * kGradientBound);
  fmt::print("with sums of the unrounded logits: {:.1e}\n", gradient(logits));
}

TEST_P(LossPrecisionTest, RanksWithUnevenBatchesAgree) {
  const auto ranks = static_cast<int64_t>(dp_group().size());
  const int64_t b = 150, width = 96;
  ReferenceBatch batch;
  fill(batch, b, width, 7);
  std::vector<int64_t> uneven(static_cast<size_t>(ranks));
  for (int64_t r = 0, left = b; r < ranks; ++r) {
    uneven[static_cast<size_t>(r)] = r + 1 == ranks ? left : left / 3;
    left -= uneven[static_cast<size_t>(r)];
  }
  for (Case c : kinds(20)) {
    const ReferenceLoss want = reference(c, batch, LossPrecision::bf16);
    for (const auto& counts : {uneven, on_last_rank(b)}) {
      for (const int64_t tile : {0, 40}) {
        c.config.tile_rows = c.config.tile_columns = tile;
        const Errors e = errors_of(run(c, batch, counts, GetParam()), want);
        EXPECT_LE(e.largest_gradient(), kGradientBound) << c.name << ", tiles of " << tile;
        EXPECT_LE(e.loss, kLossBound) << c.name << ", tiles of " << tile;
        EXPECT_LE(e.scale, kLossBound) << c.name << ", tiles of " << tile;
      }
    }
  }
}

// Nothing is rounded of f64 embeddings, nor of f32 ones unless it is asked for.
TEST_P(LossPrecisionTest, OnlyWhereItIsAskedFor) {
  const int64_t b = 60, width = 32;
  ReferenceBatch batch;
  fill(batch, b, width, 9);
  for (Case c : kinds(100)) {
    const ReferenceLoss want = reference(c, batch, LossPrecision::fp32);
    EXPECT_GT(errors_of(run(c, batch, on_last_rank(b), GetParam()), want).largest_gradient(), 1e-4);
    c.config.precision = LossPrecision::fp32;
    EXPECT_LE(errors_of(run(c, batch, on_last_rank(b), GetParam()), want).largest_gradient(), 1e-5);
  }
}

// What the stage states is what it takes: of the memory that is counted, and by its own count.
TEST(LossMemoryStated, IsWhatIsTaken) {
  Communicator& dp = dp_group();
  const int ranks = dp.size();
  size_t most = 0;
  for (const int64_t b : {600, 1500}) {
    ReferenceBatch batch;
    fill(batch, b, 48, 1);
    std::vector<int64_t> counts(static_cast<size_t>(ranks), b / ranks);
    for (Case c : kinds(20)) {
      for (const LossPrecision precision : {LossPrecision::fp32, LossPrecision::bf16}) {
        c.config.precision = precision;
        const int64_t own = b / ranks, first = own * dp.rank();
        Tensor queries({own, 48}, DType::f32), documents({own, 48}, DType::f32);
        for (int64_t i = 0; i < own * 48; ++i) {
          const auto at = static_cast<size_t>(first * 48 + i);
          queries.as<float>()[i] = static_cast<float>(batch.queries.values[at]);
          documents.as<float>()[i] = static_cast<float>(batch.documents.values[at]);
        }
        Tensor dq({own, 48}, DType::f32), dk({own, 48}, DType::f32);
        std::vector<int32_t> positive(static_cast<size_t>(own));
        std::iota(positive.begin(), positive.end(), 0);
        const auto ids = [&](const std::vector<uint64_t>& all) {
          return std::span(all).subspan(static_cast<size_t>(first), static_cast<size_t>(own));
        };
        const ContrastiveInput input{
            queries, documents, ids(batch.query_ids), ids(batch.document_ids), positive, {}, {}};
        const size_t before = memory_use(Device::cpu()).now;
        const ContrastiveOutput out =
            contrastive_loss(c.config, std::log(c.scale), c.bias, input, dq, dk, dp);
        const LossBytes stated = contrastive_loss_bytes(
            c.config, {own, own, own * ranks, own * ranks, 48, ranks}, Device::cpu());
        EXPECT_LE(out.peak_bytes, stated.total()) << c.name;
        EXPECT_GE(static_cast<double>(out.peak_bytes), 0.97 * static_cast<double>(stated.total()))
            << c.name;
        // Where this case raised the process's peak, that is no more either.
        const size_t peak = memory_use(Device::cpu()).peak;
        if (peak > most) {
          EXPECT_LE(peak - before, stated.total()) << c.name;
        }
        most = peak;
      }
    }
  }
}

TEST(LossMemoryStated, IsHalfAGigabyteAtMost) {
  LossConfig config;
  config.precision = LossPrecision::bf16;
  const int64_t b = 65536, width = 768;
  for (const int ranks : {1, 2, 8, 64}) {
    for (const LossKind kind : {LossKind::infonce, LossKind::siglip}) {
      config.kind = kind;
      const LossExtent extent{b / ranks, b / ranks, b, b, width, ranks};
      const LossBytes bytes = contrastive_loss_bytes(config, extent, Device::cuda());
      EXPECT_LE(static_cast<double>(bytes.total()), 0.5e9) << ranks;
      fmt::print(
          "{} ranks: {:.0f} MB: copies {:.0f}, gradients {:.0f}, tiles {:.0f}, statistics "
          "{:.0f}, bookkeeping {:.0f}, work space {:.0f}\n",
          ranks, static_cast<double>(bytes.total()) * 1e-6,
          static_cast<double>(bytes.embeddings) * 1e-6, static_cast<double>(bytes.gradients) * 1e-6,
          static_cast<double>(bytes.tiles) * 1e-6, static_cast<double>(bytes.statistics) * 1e-6,
          static_cast<double>(bytes.bookkeeping) * 1e-6,
          static_cast<double>(bytes.work_space) * 1e-6);
    }
  }
  // A matrix of all logits would be 17 GB.
  config.tile_rows = config.tile_columns = b;
  const LossBytes whole = contrastive_loss_bytes(config, {b, b, b, b, width, 1}, Device::cuda());
  EXPECT_GT(whole.total(), size_t{17} << 30);
}

// Sizes of tiles and blocks, and those of the last ones; what they cover is the whole matrix.
TEST(LossProducts, AreThoseOfTheTiles) {
  LossConfig config;
  config.precision = LossPrecision::bf16;
  config.tile_rows = 30;
  config.tile_columns = 70;
  const LossExtent extent{200, 200, 400, 400, 16, 2};
  const auto texts = [&] {
    std::set<std::string> all;
    for (const Product& p : contrastive_loss_products(config, extent, Device::cuda()))
      EXPECT_TRUE(all.insert(to_text(p)).second) << to_text(p);
    return all;
  };
  // 200 rows: blocks of 90, 90 and 20. 400 columns: 70 five times, and 50.
  using Texts = std::set<std::string>;
  EXPECT_EQ(texts(),
            (Texts{"nt 30 x 70 x 16 bf16 to f32", "nt 20 x 70 x 16 bf16 to f32",
                   "nt 30 x 50 x 16 bf16 to f32", "nt 20 x 50 x 16 bf16 to f32",
                   "nn 90 x 16 x 70 bf16 to f32 adds", "nn 20 x 16 x 70 bf16 to f32 adds",
                   "nn 90 x 16 x 50 bf16 to f32 adds", "nn 20 x 16 x 50 bf16 to f32 adds",
                   "tn 70 x 16 x 90 bf16 to f32 adds", "tn 70 x 16 x 20 bf16 to f32 adds",
                   "tn 50 x 16 x 90 bf16 to f32 adds", "tn 50 x 16 x 20 bf16 to f32 adds"}));
  // In f32 a block is a tile; all texts are rows and columns.
  config.precision = LossPrecision::fp32;
  config.candidates = LossCandidates::all;
  config.tile_rows = 100;
  config.tile_columns = 1000;
  EXPECT_EQ(texts(), (Texts{"nt 100 x 800 x 16 f32 to f32", "nn 100 x 16 x 800 f32 to f32 adds",
                            "tn 800 x 16 x 100 f32 to f32 adds"}));
}

}  // namespace
}  // namespace amur
