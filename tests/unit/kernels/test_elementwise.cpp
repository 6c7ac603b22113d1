#include "kernels/elementwise.h"

#include "kernels/dropout_math.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class ElementwiseTest : public KernelTest {};
class GateTest : public KernelTest {};

TEST_P(ElementwiseTest, AxpyAndScale) {
  for (const int64_t n : {0, 1, 15, 16, 1000, 40001}) {
    const Tensor x = random_tensor({n}, dtype(), 1);
    Tensor y = random_tensor({n}, dtype(), 2);
    Doubles expected = to_doubles(y);
    const Doubles in = to_doubles(x);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += 0.25 * in[i];
    axpy(0.25, x, y);
    expect_near(y, expected, rounding(dtype()), "axpy");
    expected = to_doubles(y);
    for (double& v : expected) v *= -3;
    scale(-3, y);
    expect_near(y, expected, 3 * rounding(dtype()), "scale");
  }
}

TEST_P(GateTest, MatchesTheDefinition) {
  for (const int64_t n : {0, 1, 15, 16, 1000, 70001}) {
    const Tensor x = random_tensor({n}, dtype(), 1), dy = random_tensor({n}, dtype(), 2);
    Tensor y = random_tensor({n}, dtype(), 3), dx = empty({n}, dtype());
    const Tensor gate = filled({1}, parameter(), 0.25);
    const Doubles in = to_doubles(x), d = to_doubles(dy);
    Doubles expected = to_doubles(y);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = 0.25 * expected[i] + 0.75 * in[i];
    gate_forward(gate, x, y);
    expect_near(y, expected, 2 * rounding(dtype()), "forward");

    const Doubles out = to_doubles(y);
    Doubles through(d), past(d);
    double sum = 0;
    for (size_t i = 0; i < d.size(); ++i) {
      sum += d[i] * (out[i] - in[i]);
      through[i] *= 0.25;
      past[i] *= 0.75;
    }
    Tensor sink = filled({1}, parameter(), 3);
    gate_backward(gate, dy, x, 0.5, y, dx, sink);
    expect_near(y, through, rounding(dtype()), "through the norm");
    expect_near(dx, past, rounding(dtype()), "past it");
    expect_near(sink, {3 + 0.5 * sum}, 2 * rounding(parameter()), "gate");
  }
}

TEST_P(ElementwiseTest, Cast) {
  const Tensor from = random_tensor({1003}, dtype(), 1);
  for (const DType to : {DType::f32, DType::bf16, DType::f64}) {
    Tensor result({1003}, to, device());
    cast(from, result);
    const Doubles in = to_doubles(from), out = to_doubles(result);
    for (size_t i = 0; i < in.size(); ++i) {
      double expected = in[i];
      if (to == DType::f32) expected = static_cast<float>(in[i]);
      if (to == DType::bf16) expected = static_cast<double>(bf16(static_cast<float>(in[i])));
      ASSERT_EQ(out[i], expected);
    }
  }
}

TEST_P(ElementwiseTest, AddBias) {
  for (const auto& [rows, width] :
       {std::pair<int64_t, int64_t>{0, 5}, {1, 1}, {7, 33}, {70, 256}}) {
    Tensor y = random_tensor({rows, width}, dtype(), 1);
    const Tensor bias = random_tensor({width}, parameter(), 2);
    const Doubles b = to_doubles(bias);
    Doubles expected = to_doubles(y);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += b[i % static_cast<size_t>(width)];
    add_bias(bias, y);
    expect_near(y, expected, rounding(dtype()), "add_bias");
  }
}

TEST_P(ElementwiseTest, ColumnSums) {
  for (const auto& [rows, width] :
       {std::pair<int64_t, int64_t>{0, 5}, {1, 1}, {7, 33}, {256, 64}, {1025, 150}}) {
    const Tensor dy = random_tensor({rows, width}, dtype(), 1);
    Tensor sink = filled({width}, parameter(), 7);
    Doubles expected(static_cast<size_t>(width), 7);
    const Doubles in = to_doubles(dy);
    for (size_t i = 0; i < in.size(); ++i) expected[i % expected.size()] += 0.5 * in[i];
    accumulate_column_sums(0.5, dy, sink);
    expect_near(sink, expected, 500 * rounding(parameter()), "sums");
  }
  const Tensor dy = random_tensor({2000, 150}, dtype(), 1);
  expect_same_for_any_threads([&] {
    std::vector<Tensor> r;
    r.push_back(Tensor::zeros({150}, parameter(), device()));
    accumulate_column_sums(1, dy, r[0]);
    return r;
  });
}

TEST_P(ElementwiseTest, ColumnSumsInParts) {
  for (const int64_t of_part : {1, 8, 33, 96}) {
    const int64_t rows = 700;
    const Tensor dy = random_tensor({rows, 3 * of_part}, dtype(), 1);
    Tensor first = filled({of_part}, parameter(), 7), last = filled({of_part}, parameter(), 5);
    accumulate_column_sums(dy, std::array<ColumnSink, 3>{{{first, 0.5}, {}, {last, 0.25}}});
    const auto n = static_cast<size_t>(of_part);
    Doubles sums(3 * n);
    const Doubles in = to_doubles(dy);
    for (size_t i = 0; i < in.size(); ++i) sums[i % sums.size()] += in[i];
    Doubles first_expected(n), last_expected(n);
    for (size_t j = 0; j < n; ++j) {
      first_expected[j] = 7 + 0.5 * sums[j];
      last_expected[j] = 5 + 0.25 * sums[2 * n + j];
    }
    expect_near(first, first_expected, 500 * rounding(parameter()), "first");
    expect_near(last, last_expected, 500 * rounding(parameter()), "last");
  }
}

TEST_P(ElementwiseTest, Join) {
  for (const int64_t of_part : {1, 300}) {
    const Tensor a = random_tensor({of_part}, parameter(), 1),
                 b = random_tensor({of_part}, parameter(), 2);
    Tensor row = random_tensor({3 * of_part}, dtype(), 3), rounded = empty({of_part}, dtype());
    join(std::array<ConstTensorView, 3>{a.view(), {}, b.view()}, row);
    cast(a, rounded);
    EXPECT_TRUE(same_bits(row.view().slice(0, of_part), rounded));
    EXPECT_TRUE(same_bits(row.view().slice(of_part, of_part), zeros({of_part}, dtype())));
    cast(b, rounded);
    EXPECT_TRUE(same_bits(row.view().slice(2 * of_part, of_part), rounded));
  }
}

TEST_P(ElementwiseTest, SumOfSquares) {
  for (const int64_t n : {0, 1, 17, 65536, 200001}) {
    const Tensor x = random_tensor({n}, dtype(), 1);
    double expected = 0;
    for (double v : to_doubles(x)) expected += v * v;
    EXPECT_NEAR(sum_of_squares(x), expected, 1e-12 * expected);
    EXPECT_NEAR(root_mean_square(x), n == 0 ? 0 : std::sqrt(expected / static_cast<double>(n)),
                1e-11);
    const double one_thread = sum_of_squares(x);
    set_compute_threads(3);
    EXPECT_EQ(sum_of_squares(x), one_thread);
    set_compute_threads(1);
  }
}

TEST_P(ElementwiseTest, AllFinite) {
  EXPECT_TRUE(all_finite(Tensor({0}, dtype(), device())));
  for (const double bad : {std::nan(""), double{INFINITY}, double{-INFINITY}}) {
    for (const size_t at : {size_t{0}, size_t{65535}, size_t{65536}, size_t{70000}}) {
      Doubles v = random_doubles(70001, 1, 1e6);
      EXPECT_TRUE(all_finite(from_doubles(v, {70001}, dtype(), device())));
      v[at] = bad;
      EXPECT_FALSE(all_finite(from_doubles(v, {70001}, dtype(), device()))) << at;
    }
  }
}

// Many tensors at once are one after another; empty and undefined ones among them.
TEST_P(ElementwiseTest, ManyAtOnce) {
  std::vector<Tensor> tensors;
  std::vector<ConstTensorView> views(1);
  for (const int64_t n : {3, 0, 16384, 16385, 1, 70001, 0}) {
    tensors.push_back(random_tensor({n}, dtype(), tensors.size() + 1));
    views.push_back(tensors.back());
  }
  views.emplace_back();
  const std::vector<double> sums = sums_of_squares(views);
  ASSERT_EQ(sums.size(), views.size());
  for (size_t i = 0; i < views.size(); ++i) {
    double expected = 0;
    if (views[i].defined())
      for (double v : to_doubles(views[i])) expected += v * v;
    EXPECT_NEAR(sums[i], expected, 1e-12 * expected) << i;
    EXPECT_EQ(sums[i], views[i].defined() ? sum_of_squares(views[i]) : 0) << i;
  }
  EXPECT_TRUE(sums_of_squares({}).empty());
}

TEST_P(ElementwiseTest, ScalesManyAtOnce) {
  const std::vector<int64_t> sizes = {3, 0, 16384, 16385, 1, 70001, 0};
  // The last ones begin between two packs.
  std::vector<Tensor> tensors;
  std::vector<TensorView> views(1);
  for (const int64_t n : sizes) {
    tensors.push_back(random_tensor({n + 2}, dtype(), tensors.size() + 1));
    views.push_back(tensors.back().view().slice(n > 16384 ? 1 : 0, n));
  }
  std::vector<Doubles> expected, around;
  for (size_t i = 0; i < sizes.size(); ++i) {
    around.push_back(to_doubles(tensors[i]));
    Tensor one = random_tensor({sizes[i] + 2}, dtype(), i + 1);
    const TensorView part = one.view().slice(sizes[i] > 16384 ? 1 : 0, sizes[i]);
    scale(0.3, part);
    expected.push_back(to_doubles(part));
  }
  scale(0.3, views);
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(to_doubles(views[i + 1]), expected[i]) << i;
    const Doubles now = to_doubles(tensors[i]);  // neighbours are as they were
    EXPECT_EQ(now.back(), around[i].back());
    if (sizes[i] > 16384) {
      EXPECT_EQ(now.front(), around[i].front());
    }
  }
  Doubles broken = to_doubles(views[3]);
  broken[5] = std::nan("");
  tensors[0] = from_doubles(broken, {std::ssize(broken)}, dtype(), device());
  views[1] = tensors[0];
  scale(0, views);
  for (size_t i = 1; i < views.size(); ++i)
    for (const double v : to_doubles(views[i])) EXPECT_EQ(v, 0);
  scale(2, std::span<const TensorView>());
}

TEST_P(ElementwiseTest, MarksWhatIsNotFinite) {
  std::vector<Tensor> tensors;
  std::vector<ConstTensorView> views;
  for (const int64_t n : {3, 0, 16384, 16385, 1, 70001, 0}) {
    tensors.push_back(random_tensor({n}, dtype(), tensors.size() + 1));
    views.push_back(tensors.back());
  }
  Tensor flags = Tensor::zeros({std::ssize(views)}, DType::i32, device());
  Doubles expected(views.size(), 0);
  const auto marked = [&] {
    mark_not_finite(views, flags);
    Tensor staging;
    const auto* found = on_host(flags, staging).as<int32_t>();
    return Doubles(found, found + views.size());
  };
  EXPECT_EQ(marked(), expected);
  for (const size_t bad : {size_t{5}, size_t{3}, size_t{0}}) {
    Doubles v = to_doubles(tensors[bad]);
    v.back() = std::nan("");
    const Tensor broken = from_doubles(v, tensors[bad].shape(), dtype(), device());
    views[bad] = broken;
    expected[bad] = 1;
    EXPECT_EQ(marked(), expected);
    views[bad] = tensors[bad];  // finite again: its mark stays
  }
  EXPECT_EQ(marked(), expected);
  mark_not_finite({}, flags.view().slice(0, 0));
  EXPECT_THROW(mark_not_finite(views, flags.view().slice(0, 2)), InternalError);
}

TEST_P(ElementwiseTest, DropoutFollowsItsDefinition) {
  const Sequences sequences({3, 1, 9, 30}, 1000, device());
  const int64_t tokens = sequences.tokens();
  for (const int64_t width : {1, 8, 13, 16, 17, 100, 384}) {
    const DropoutSite site{0.3, 4, 2};
    const Tensor x = random_tensor({tokens, width}, dtype(), 1);
    const Tensor residual = random_tensor({tokens, width}, dtype(), 2);
    Tensor y({tokens, width}, dtype(), device()), dx({tokens, width}, dtype(), device());
    dropout_add_forward(sequences.packed, site, x, residual, y);
    dropout_backward(sequences.packed, site, x, dx);
    const Doubles in = to_doubles(x);
    Doubles y_expected = to_doubles(residual), dx_expected(y_expected.size());
    for (size_t s = 0; s < sequences.count(); ++s) {
      // The definition of kernels/packed.h, spelled out once more.
      const RandomKey key =
          RandomKey(static_cast<uint64_t>(sequences.keys.as<int64_t>()[s])).fold(4).fold(2);
      for (int32_t t = sequences.starts[s]; t < sequences.starts[s + 1]; ++t) {
        for (int64_t j = 0; j < width; ++j) {
          const uint64_t element = static_cast<uint64_t>(j), lane = element % 8;
          const Philox p = key.at(static_cast<uint64_t>(t - sequences.starts[s]), element / 8);
          const uint32_t bits = (p.v[lane / 2] >> (lane % 2 ? 16 : 0)) & 0xffff;
          const size_t at = static_cast<size_t>(t * width + j);
          if (bits >= 19661) dx_expected[at] = in[at] / 0.7;
          y_expected[at] += dx_expected[at];
        }
      }
    }
    expect_near(y, y_expected, 4 * rounding(dtype()), "y");
    expect_near(dx, dx_expected, 4 * rounding(dtype()), "dx");
    Tensor in_place({tokens, width}, dtype(), device());
    copy(in_place, x);
    dropout_backward(sequences.packed, site, in_place, in_place);
    EXPECT_TRUE(same_bits(in_place, dx));
    copy(in_place, residual);
    dropout_add_forward(sequences.packed, site, x, in_place, in_place);
    EXPECT_TRUE(same_bits(in_place, y));
  }
}

TEST_P(ElementwiseTest, DropoutProperties) {
  const int64_t width = 256;
  const Sequences pair({40, 60}, 10, device()), second({60}, 11, device()),
      other_key({60}, 12, device());
  const Tensor ones = filled({100, width}, dtype(), 1);
  const ConstTensorView ones_60 = ConstTensorView(ones).slice(0, 60);
  const auto mask = [&](const Sequences& s, const DropoutSite& site) {
    Tensor y({s.tokens(), width}, dtype(), device());
    dropout_backward(s.packed, site, s.tokens() == 100 ? ConstTensorView(ones) : ones_60, y);
    return y;
  };
  const DropoutSite site{0.25, 1, 1};
  const Tensor in_pair = mask(pair, site), alone = mask(second, site);
  // The mask belongs to the sequence, not to its place in the chunk.
  EXPECT_TRUE(same_bits(in_pair.view().slice(40, 60), alone));
  // Other keys, layers and sites give other masks, and both directions of a site the same one.
  EXPECT_FALSE(same_bits(mask(other_key, site), alone));
  EXPECT_FALSE(same_bits(mask(second, {0.25, 2, 1}), alone));
  EXPECT_FALSE(same_bits(mask(second, {0.25, 1, 2}), alone));
  Tensor forward({60, width}, dtype(), device());
  dropout_add_forward(second.packed, site, ones_60, {}, forward);
  EXPECT_TRUE(same_bits(forward, alone));
  // The share of survivors: 5 standard deviations of a binomial.
  const int64_t n = 60 * width;
  int64_t kept = 0;
  for (double v : to_doubles(alone)) kept += v != 0;
  EXPECT_NEAR(static_cast<double>(kept) / static_cast<double>(n), 0.75,
              5 * std::sqrt(0.25 * 0.75 / static_cast<double>(n)));

  // Probability 0 is the identity and reads no keys.
  PackedSequences no_keys = second.packed;
  no_keys.dropout_keys = {};
  const Tensor x = random_tensor({60, width}, dtype(), 5),
               r = random_tensor({60, width}, dtype(), 6);
  Tensor y({60, width}, dtype(), device());
  dropout_add_forward(no_keys, {}, x, {}, y);
  EXPECT_TRUE(same_bits(y, x));
  dropout_add_forward(no_keys, {}, x, r, y);
  Doubles sum = to_doubles(x);
  const Doubles added = to_doubles(r);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
  expect_near(y, sum, rounding(dtype()), "sum");
  EXPECT_THROW(dropout_add_forward(no_keys, site, x, {}, y), InternalError);
  EXPECT_THROW(dropout_add_forward(second.packed, {1.0, 0, 0}, x, {}, y), InternalError);
}

// The sums of what comes out, beside it: for rows that a warp holds, and others.
TEST_P(ElementwiseTest, DropoutWithSums) {
  const Sequences sequences({3, 1, 40, 2, 24}, 1000, device());
  const int64_t rows = sequences.tokens();
  for (const int64_t width : {1, 33, 64, 1000, 1040}) {
    for (const double probability : {0.0, 0.3}) {
      const Tensor dy = random_tensor({rows, width}, dtype(), 1);
      Tensor expected = empty({rows, width}, dtype()), dx = empty({rows, width}, dtype());
      Tensor sink = filled({width}, parameter(), 7);
      dropout_backward(sequences.packed, {probability, 3, 2}, dy, expected);
      dropout_backward(sequences.packed, {probability, 3, 2}, dy, dx, {sink, 0.5});
      EXPECT_TRUE(same_bits(dx, expected)) << width;
      Doubles sums(static_cast<size_t>(width), 7);
      const Doubles out = to_doubles(dx);
      for (size_t i = 0; i < out.size(); ++i) sums[i % sums.size()] += 0.5 * out[i];
      expect_near(sink, sums, 100 * rounding(parameter()), "sums");
    }
  }
}

TEST_P(ElementwiseTest, DropoutThreadsAndEmpty) {
  const Sequences none({}, 1000, device());
  Tensor nothing({0, 16}, dtype(), device());
  dropout_add_forward(none.packed, {0.1, 0, 0}, nothing, {}, nothing);
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < 100; ++i) lengths.push_back(1 + i % 13);
  const Sequences sequences(lengths, 1000, device());
  const Tensor x = random_tensor({sequences.tokens(), 72}, dtype(), 1);
  expect_same_for_any_threads([&] {
    std::vector<Tensor> r;
    r.emplace_back(Shape{sequences.tokens(), 72}, dtype(), device());
    dropout_backward(sequences.packed, {0.1, 0, 0}, x, r[0]);
    return r;
  });
}

AMUR_ALL_KERNEL_CASES(ElementwiseTest);
AMUR_ALL_KERNEL_CASES(GateTest);

TEST(CastRounding, ToNearestEvenWithNaNAndInfinity) {
  for (const cpu::Isa isa : available_isas()) {
    cpu::limit_instruction_set(isa);
    const std::vector<std::pair<uint32_t, uint16_t>> cases = {
        {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80},
        {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0},
        {0x00000001, 0x0000}, {0x80000000, 0x8000}};
    Tensor from({static_cast<int64_t>(cases.size())}, DType::f32);
    Tensor to({static_cast<int64_t>(cases.size())}, DType::bf16);
    for (size_t i = 0; i < cases.size(); ++i)
      from.as<float>()[i] = std::bit_cast<float>(cases[i].first);
    cast(from, to);
    for (size_t i = 0; i < cases.size(); ++i) {
      EXPECT_EQ(to.as<bf16>()[i].bits, cases[i].second) << i << " " << cpu::name_of(isa);
      EXPECT_EQ(bf16(std::bit_cast<float>(cases[i].first)).bits, cases[i].second) << i;
    }
  }
  cpu::limit_instruction_set(cpu::Isa::avx512);
}

}  // namespace
}  // namespace amur::test
