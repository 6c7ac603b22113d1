#include "kernels/embedding.h"

#include <array>

#include "kernels/elementwise.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class EmbeddingTest : public KernelTest {};

std::vector<int32_t> random_ids(int64_t n, uint64_t rows) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i)
    ids.push_back(static_cast<int32_t>(RandomKey(3).below(static_cast<uint64_t>(i), rows)));
  return ids;
}

TEST_P(EmbeddingTest, LookupAndScatter) {
  const Sequences sequences({1, 5, 2, 12, 1}, 1000, device());
  const int64_t tokens = sequences.tokens(), vocabulary = 9, positions = 12;
  const std::vector<int32_t> id = random_ids(tokens, 9);  // every id occurs more than once
  const Tensor ids = integers(id);
  for (const int64_t width : {1, 7, 64, 66, 200}) {
    const size_t w = static_cast<size_t>(width);
    const Tensor table = random_tensor({vocabulary, width}, parameter(), 1);
    const Tensor position_table = random_tensor({positions, width}, parameter(), 2);
    const Tensor dy = random_tensor({tokens, width}, dtype(), 3);
    Tensor y = empty({tokens, width}, dtype()), y_tokens = empty({tokens, width}, dtype());
    Tensor sink = filled({vocabulary, width}, parameter(), 1);
    Tensor position_sink = filled({positions, width}, parameter(), 2);
    Tensor sink_only = filled({vocabulary, width}, parameter(), 1);
    embedding_forward(sequences.packed, ids, table, position_table, y);
    embedding_forward(sequences.packed, ids, table, {}, y_tokens);
    embedding_backward(sequences.packed, ids, dy, 0.5, sink, position_sink);
    embedding_backward(sequences.packed, ids, dy, 0.5, sink_only, {});
    EXPECT_TRUE(same_bits(sink, sink_only));

    const Doubles words = to_doubles(table), places = to_doubles(position_table),
                  d = to_doubles(dy);
    Doubles y_expected(static_cast<size_t>(tokens) * w), tokens_expected(y_expected.size());
    Doubles sink_expected = Doubles(9 * w, 1), position_expected = Doubles(12 * w, 2);
    for (size_t s = 0; s < sequences.count(); ++s) {
      for (int32_t t = sequences.starts[s]; t < sequences.starts[s + 1]; ++t) {
        for (size_t j = 0; j < w; ++j) {
          const size_t at = static_cast<size_t>(t) * w + j;
          const size_t row = static_cast<size_t>(id[static_cast<size_t>(t)]) * w + j;
          const size_t place = static_cast<size_t>(t - sequences.starts[s]) * w + j;
          tokens_expected[at] = words[row];
          y_expected[at] = tokens_expected[at] + places[place];
          sink_expected[row] += 0.5 * d[at];
          position_expected[place] += 0.5 * d[at];
        }
      }
    }
    expect_near(y, y_expected, rounding(dtype()), "y");
    expect_near(y_tokens, tokens_expected, rounding(dtype()), "y without positions");
    expect_near(sink, sink_expected, 20 * rounding(parameter()), "tokens");
    expect_near(position_sink, position_expected, 20 * rounding(parameter()), "positions");
  }
}

// Ids that occur so often, in tokens all over a chunk; the rows of some are not here. However many
// threads add the rows of an id, the order is that of the tokens: the bits are the CPU's.
TEST_P(EmbeddingTest, AnyNumberOfTokensOfAnId) {
  const std::vector<std::vector<int64_t>> numbers = {
      {1}, {1, 1}, {700}, {1, 31, 32, 33, 2, 127, 128, 129, 255, 256, 257, 3, 1, 1}};
  for (const auto& [vocabulary, width] :
       {std::pair<int64_t, int64_t>{65537, 2}, {300, 65}, {300, 66}}) {
    for (const std::vector<int64_t>& times : numbers) {
      std::vector<int32_t> id;
      for (size_t k = 0; k < times.size(); ++k)
        id.insert(id.end(), static_cast<size_t>(times[k]),
                  static_cast<int32_t>(vocabulary - 1 - static_cast<int64_t>(k) * vocabulary / 15));
      const auto n = static_cast<int64_t>(id.size());
      const KeyedPermutation shuffled(RandomKey(7), id.size());
      std::vector<int32_t> mixed(id.size());
      for (size_t t = 0; t < id.size(); ++t) mixed[t] = id[shuffled(t)];
      const Tensor values = test::random_tensor({n, width}, dtype(), 1);
      const TableRows part{20, vocabulary};
      const auto sums = [&](Device where) {
        const Sequences sequences({static_cast<int32_t>(n)}, 1000, where);
        const Tensor ids = on_device(test::integers(mixed), where);
        const Tensor dy = copy_on(where, values);
        std::vector<Tensor> r;
        r.push_back(Tensor::zeros({vocabulary, width}, parameter(), where));
        r.push_back(Tensor::zeros({vocabulary - 27, width}, parameter(), where));
        embedding_backward(sequences.packed, ids, dy, 0.3, r[0], {});
        embedding_backward(sequences.packed, ids, dy, 0.3, r[1], {}, part);
        return r;
      };
      const std::vector<Tensor> here = sums(device()), reference = sums(Device::cpu());
      EXPECT_TRUE(same_bits(here[0], reference[0])) << n << " tokens";
      EXPECT_TRUE(same_bits(here[1], reference[1])) << n << " tokens";
      EXPECT_TRUE(same_bits(here[1], here[0].view().slice(part.first, vocabulary - 27)));
    }
  }
}

// A thousand of short texts; long ones; both.
TEST_P(EmbeddingTest, AnyNumberOfTexts) {
  std::vector<int32_t> many(1100, 2), mixed(300, 1);
  for (size_t s = 0; s < many.size(); s += 3) many[s] = 1;
  for (size_t s = 0; s < mixed.size(); s += 37) mixed[s] = static_cast<int32_t>(s / 2 + 1);
  for (const auto& [lengths, width] :
       {std::pair<std::vector<int32_t>, int64_t>{many, 2}, {mixed, 66}, {{1}, 65}, {{600}, 2}}) {
    const auto results = [&](Device where) {
      const Sequences sequences(lengths, 1000, where);
      const auto texts = static_cast<int64_t>(sequences.count());
      const int64_t n = sequences.tokens(), longest = sequences.packed.longest;
      const Tensor ids = on_device(test::integers(random_ids(n, 9)), where);
      const Tensor x = test::random_tensor({n, width}, dtype(), 1, 1, where);
      const Tensor words = test::random_tensor({9, width}, parameter(), 2, 1, where);
      const Tensor places = test::random_tensor({longest, width}, parameter(), 3, 1, where);
      const Tensor dh = test::random_tensor({texts, width}, parameter(), 4, 1, where);
      std::vector<Tensor> r;
      r.push_back(test::filled({longest + 1, width}, parameter(), 1, where));
      embedding_backward(sequences.packed, ids, x, 0.3, {}, r.back());
      r.emplace_back(Shape{n, width}, dtype(), where);
      embedding_forward(sequences.packed, ids, words, places, r.back());
      for (const PoolingKind kind : {PoolingKind::mean, PoolingKind::cls}) {
        r.emplace_back(Shape{texts, width}, parameter(), where);
        pooling_forward(kind, sequences.packed, x, r.back());
        r.emplace_back(Shape{n, width}, dtype(), where);
        pooling_backward(kind, sequences.packed, dh, r.back());
      }
      return r;
    };
    const std::vector<Tensor> here = results(device()), reference = results(Device::cpu());
    for (size_t i = 0; i < here.size(); ++i)
      EXPECT_TRUE(same_bits(here[i], reference[i])) << lengths.size() << " texts, result " << i;
  }
}

// Rows that are a whole number of 16 bytes and do not begin at one.
TEST_P(EmbeddingTest, AnyPlaceInMemory) {
  const Sequences sequences({1, 5, 2, 12, 1}, 1000, device());
  const int64_t tokens = sequences.tokens(), width = 72, texts = 5;
  const Tensor ids = integers(random_ids(tokens, 9));
  const Tensor x = random_tensor({tokens, width}, dtype(), 1);
  const Tensor nothing = zeros({tokens, width}, dtype()), no_h = zeros({texts, width}, parameter());
  const Tensor table = random_tensor({12, width}, parameter(), 2);
  const Tensor h = random_tensor({texts, width}, parameter(), 3);
  const auto results = [&](const auto& placed) {
    auto y = placed(nothing), summed = placed(x), dx = placed(nothing);
    auto words = placed(table), places = placed(table), pooled = placed(no_h);
    embedding_forward(sequences.packed, ids, table, words, y);
    add_sinusoidal_positions(sequences.packed, summed);
    embedding_backward(sequences.packed, ids, placed(x), 0.5, words, places);
    pooling_forward(PoolingKind::mean, sequences.packed, placed(x), pooled);
    pooling_backward(PoolingKind::mean, sequences.packed, placed(h), dx);
    std::vector<Tensor> r;
    for (const ConstTensorView v :
         {ConstTensorView(y), ConstTensorView(summed), ConstTensorView(words),
          ConstTensorView(places), ConstTensorView(pooled), ConstTensorView(dx)})
      r.push_back(copy_on(Device::cpu(), v));
    return r;
  };
  const std::vector<Tensor> even = results([&](const Tensor& t) { return copy_on(device(), t); });
  const std::vector<Tensor> odd = results([](const Tensor& t) { return OddlyPlaced(t); });
  for (size_t i = 0; i < even.size(); ++i) EXPECT_TRUE(same_bits(even[i], odd[i])) << i;
}

// Tables in bf16 are looked up as if they were widened; sinks in bf16 get the sums of those that
// are not, rounded once.
TEST_P(EmbeddingTest, TablesInBf16) {
  if (dtype() == DType::f64) return;
  const Sequences sequences({1, 5, 2, 12, 1}, 1000, device());
  const int64_t tokens = sequences.tokens();
  const Tensor ids = integers(random_ids(tokens, 9));
  for (const int64_t width : {67, 72}) {
    const auto both = [&](int64_t rows, uint64_t seed) {
      std::array<Tensor, 2> tables = {random_tensor({rows, width}, DType::bf16, seed),
                                      empty({rows, width}, DType::f32)};
      cast(tables[0], tables[1]);
      return tables;
    };
    const auto table = both(9, 1), places = both(12, 2), part = both(4, 3);
    const Tensor dy = random_tensor({tokens, width}, dtype(), 4);
    Tensor y[2], sink[2], place_sink[2], part_sink[2];
    for (size_t k = 0; k < 2; ++k) {
      const DType type = k == 0 ? DType::bf16 : DType::f32;
      y[k] = empty({tokens, width}, dtype());
      embedding_forward(sequences.packed, ids, table[k], places[k], y[k]);
      sink[k] = zeros({9, width}, type);
      place_sink[k] = zeros({12, width}, type);
      embedding_backward(sequences.packed, ids, dy, 0.5, sink[k], place_sink[k]);
      part_sink[k] = zeros({4, width}, type);
      embedding_backward(sequences.packed, ids, dy, 0.5, part_sink[k], {}, {2, 9});
    }
    EXPECT_TRUE(same_bits(y[0], y[1]));
    for (auto* sinks : {&sink, &place_sink, &part_sink}) {
      Tensor rounded = empty((*sinks)[0].shape(), DType::bf16);
      cast((*sinks)[1], rounded);
      EXPECT_TRUE(same_bits((*sinks)[0], rounded));
    }
    // Onto what is there, with one rounding.
    embedding_backward(sequences.packed, ids, dy, 0.5, sink[0], place_sink[0]);
    embedding_backward(sequences.packed, ids, dy, 0.5, sink[1], place_sink[1]);
    expect_near(sink[0], to_doubles(sink[1]), 2 * rounding(DType::bf16), "tokens");
    expect_near(place_sink[0], to_doubles(place_sink[1]), 2 * rounding(DType::bf16), "positions");
    // Tables of two dtypes at once are refused.
    EXPECT_THROW(embedding_forward(sequences.packed, ids, table[0], places[1], y[0]),
                 InternalError);
  }
}

TEST_P(EmbeddingTest, PartsOfATableAddUpToTheWhole) {
  const Sequences sequences({4, 9}, 1000, device());
  const int64_t tokens = sequences.tokens(), width = 21;
  const Tensor ids = integers(random_ids(tokens, 9));
  const Tensor table = random_tensor({9, width}, parameter(), 1);
  const Tensor positions = random_tensor({9, width}, parameter(), 2);
  const Tensor dy = random_tensor({tokens, width}, dtype(), 3);
  Tensor whole = empty({tokens, width}, dtype()), sink = filled({9, width}, parameter(), 1);
  embedding_forward(sequences.packed, ids, table, positions, whole);
  embedding_backward(sequences.packed, ids, dy, 0.5, sink, {});
  Tensor sum = zeros({tokens, width}, dtype());
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {4, 5}}) {
    Tensor y = empty({tokens, width}, dtype()), part = filled({count, width}, parameter(), 1);
    embedding_forward(sequences.packed, ids, ConstTensorView(table).slice(first, count), positions,
                      y, {first, 9});
    axpy(1, y, sum);
    embedding_backward(sequences.packed, ids, dy, 0.5, part, {}, {first, 9});
    EXPECT_TRUE(same_bits(part, sink.view().slice(first, count)));
  }
  EXPECT_TRUE(same_bits(sum, whole));
}

TEST_P(EmbeddingTest, Sinusoidal) {
  const Sequences sequences({1, 30, 4}, 1000, device());
  const int64_t tokens = sequences.tokens();
  for (const int64_t width : {1, 6, 33}) {
    Tensor y = random_tensor({tokens, width}, dtype(), 1);
    Doubles expected = to_doubles(y);
    for (size_t s = 0; s < sequences.count(); ++s)
      for (int64_t t = sequences.starts[s]; t < sequences.starts[s + 1]; ++t)
        for (int64_t j = 0; j < width; ++j) {
          const double angle =
              static_cast<double>(t - sequences.starts[s]) /
              std::pow(10000.0, static_cast<double>(j - j % 2) / static_cast<double>(width));
          expected[static_cast<size_t>(t * width + j)] += j % 2 ? std::cos(angle) : std::sin(angle);
        }
    add_sinusoidal_positions(sequences.packed, y);
    expect_near(y, expected, 2 * rounding(dtype()), "y");
  }
}

TEST_P(EmbeddingTest, Pooling) {
  const Sequences sequences({1, 5, 2, 40}, 1000, device());
  const int64_t tokens = sequences.tokens(), count = 4;
  for (const int64_t width : {1, 31, 128}) {
    const size_t w = static_cast<size_t>(width);
    const Tensor x = random_tensor({tokens, width}, dtype(), 1);
    const Tensor dh = random_tensor({count, width}, parameter(), 2);
    for (const PoolingKind kind : {PoolingKind::mean, PoolingKind::cls}) {
      Tensor h = empty({count, width}, parameter()), dx = empty({tokens, width}, dtype());
      pooling_forward(kind, sequences.packed, x, h);
      pooling_backward(kind, sequences.packed, dh, dx);
      const Doubles in = to_doubles(x), d = to_doubles(dh);
      Doubles h_expected(4 * w), dx_expected(static_cast<size_t>(tokens) * w);
      for (size_t s = 0; s < 4; ++s) {
        const int32_t begin = sequences.starts[s];
        const int32_t end = kind == PoolingKind::cls ? begin + 1 : sequences.starts[s + 1];
        for (int32_t t = begin; t < end; ++t)
          for (size_t j = 0; j < w; ++j) {
            const size_t at = static_cast<size_t>(t) * w + j;
            h_expected[s * w + j] += in[at] / (end - begin);
            dx_expected[at] = d[s * w + j] / (end - begin);
          }
      }
      expect_near(h, h_expected, 10 * rounding(parameter()), "h");
      expect_near(dx, dx_expected, rounding(dtype()), "dx");
    }
  }
}

TEST_P(EmbeddingTest, EmptyAndThreads) {
  const Sequences none({}, 1000, device());
  Tensor nothing = empty({0, 8}, dtype()), no_rows = empty({0, 8}, parameter());
  Tensor table = zeros({3, 8}, parameter());
  const Tensor no_ids = integers(std::vector<int32_t>{});
  embedding_forward(none.packed, no_ids, table, {}, nothing);
  embedding_backward(none.packed, no_ids, nothing, 1, table, {});
  add_sinusoidal_positions(none.packed, nothing);
  pooling_forward(PoolingKind::mean, none.packed, nothing, no_rows);
  pooling_backward(PoolingKind::mean, none.packed, no_rows, nothing);

  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < 200; ++i) lengths.push_back(1 + i % 9);
  const Sequences sequences(lengths, 1000, device());
  const int64_t tokens = sequences.tokens(), width = 300;
  const Tensor ids = integers(random_ids(tokens, 10));
  const Tensor dy = random_tensor({tokens, width}, dtype(), 1);
  const Tensor words = random_tensor({10, width}, parameter(), 2);
  expect_same_for_any_threads([&] {
    std::vector<Tensor> r;
    r.push_back(zeros({10, width}, parameter()));
    r.push_back(zeros({9, width}, parameter()));
    r.push_back(empty({tokens, width}, dtype()));
    r.push_back(empty({200, width}, parameter()));
    embedding_backward(sequences.packed, ids, dy, 0.1, r[0], r[1]);
    embedding_forward(sequences.packed, ids, words, {}, r[2]);
    pooling_forward(PoolingKind::mean, sequences.packed, r[2], r[3]);
    return r;
  });
}

AMUR_ALL_KERNEL_CASES(EmbeddingTest);

TEST(Embedding, IdsAndPositionsAreChecked) {
  const Sequences sequences({3});
  const Tensor table = Tensor::zeros({5, 4}, DType::f32),
               short_table = Tensor::zeros({2, 4}, DType::f32);
  Tensor y({3, 4}, DType::f32);
  for (const int32_t bad : {-1, 5}) {
    const Tensor ids = integers(std::vector<int32_t>{0, bad, 1});
    EXPECT_THROW(embedding_forward(sequences.packed, ids, table, {}, y), InternalError) << bad;
  }
  const Tensor ids = integers(std::vector<int32_t>{0, 4, 1});
  EXPECT_THROW(embedding_forward(sequences.packed, ids, table, short_table, y), InternalError);
}

class NormaliseTest : public KernelTest {};

TEST_P(NormaliseTest, MatchesTheDefinition) {
  for (const auto& [rows, width] :
       {std::pair<int64_t, int64_t>{0, 4}, {1, 1}, {5, 3}, {9, 257}, {11, 264}}) {
    const size_t w = static_cast<size_t>(width);
    const Tensor h = random_tensor({rows, width}, dtype(), 1),
                 dz = random_tensor({rows, width}, dtype(), 2);
    Tensor z = empty({rows, width}, dtype()), norm = empty({rows}, dtype()),
           dh = empty({rows, width}, dtype());
    normalise_forward(h, z, norm);
    normalise_backward(dz, z, norm, dh);
    Doubles z_expected = to_doubles(h), norm_expected(static_cast<size_t>(rows)),
            dh_expected = to_doubles(dz);
    for (size_t s = 0; s < norm_expected.size(); ++s) {
      double square = 0, along = 0;
      for (size_t j = 0; j < w; ++j) square += z_expected[s * w + j] * z_expected[s * w + j];
      norm_expected[s] = std::sqrt(square);
      for (size_t j = 0; j < w; ++j) {
        z_expected[s * w + j] /= norm_expected[s];
        along += z_expected[s * w + j] * dh_expected[s * w + j];
      }
      for (size_t j = 0; j < w; ++j)
        dh_expected[s * w + j] =
            (dh_expected[s * w + j] - z_expected[s * w + j] * along) / norm_expected[s];
    }
    expect_near(z, z_expected, 4 * rounding(dtype()), "z");
    expect_near(norm, norm_expected, 4 * rounding(dtype()), "norm");
    expect_near(dh, dh_expected, 20 * rounding(dtype()), "dh");
    Tensor in_place = empty({rows, width}, dtype()), d_in_place = empty({rows, width}, dtype());
    copy(in_place, h);
    normalise_forward(in_place, in_place, norm);
    copy(d_in_place, dz);
    normalise_backward(d_in_place, z, norm, d_in_place);
    EXPECT_TRUE(same_bits(in_place, z));
    EXPECT_TRUE(same_bits(d_in_place, dh));
    const OddlyPlaced odd_z(z), odd_dh(dh);
    fill_zero(odd_z);
    fill_zero(odd_dh);
    normalise_forward(OddlyPlaced(h), odd_z, norm);
    normalise_backward(OddlyPlaced(dz), odd_z, norm, odd_dh);
    expect_near(odd_z, z_expected, 4 * rounding(dtype()), "z");
    expect_near(odd_dh, dh_expected, 20 * rounding(dtype()), "dh");
  }
}

TEST_P(NormaliseTest, ZeroTinyAndHugeRows) {
  const double tiny = dtype() == DType::f32 ? 1e-30 : 1e-150, huge = 1 / tiny;
  const Tensor h =
      from_doubles({0, 0, 3 * tiny, 4 * tiny, 3 * huge, 4 * huge}, {3, 2}, dtype(), device());
  Tensor z = empty({3, 2}, dtype()), norm = empty({3}, dtype()), dh = empty({3, 2}, dtype());
  normalise_forward(h, z, norm);
  expect_near(z, Doubles{0, 0, 0.6, 0.8, 0.6, 0.8}, 2 * rounding(dtype()), "z");
  EXPECT_EQ(to_doubles(norm)[0], 0);
  const Tensor dz = filled({3, 2}, dtype(), 1);
  normalise_backward(dz, z, norm, dh);
  EXPECT_EQ(to_doubles(dh)[0], 0);
  EXPECT_EQ(to_doubles(dh)[1], 0);
}

AMUR_KERNEL_CASES(NormaliseTest, widest_targets(), DType::f32, DType::f64);

TEST(NormaliseDerivative, CentralDifferences) {
  const Doubles h = random_doubles(12, 1), weights = random_doubles(12, 2),
                along = random_doubles(12, 3);
  const Shape shape{3, 4};
  Tensor z(shape, DType::f64), norm({3}, DType::f64), dh(shape, DType::f64);
  const auto loss = [&](const Doubles& at) {
    normalise_forward(from_doubles(at, shape, DType::f64), z, norm);
    return dot(weights, to_doubles(z));
  };
  loss(h);
  normalise_backward(from_doubles(weights, shape, DType::f64), z, norm, dh);
  EXPECT_NEAR(dot(to_doubles(dh), along), slope_along(loss, h, along), 1e-8);
}

}  // namespace
}  // namespace amur::test
