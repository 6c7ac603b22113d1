// Weights kept in bf16: the rounding itself, its noise, and the steps that use it.
#include <array>
#include <bit>
#include <limits>

#include "kernels/elementwise.h"
#include "kernels/optimizer_update.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

constexpr uint32_t kNoises = 65536;

float widened(bf16 x) {
  return static_cast<float>(x);
}

// All equally likely outcomes of one number.
TEST(StochasticRounding, MeanIsTheNumberToTheBit) {
  std::vector<float> numbers = {0.0f,        1.0f,     1.00390625f, 1.0000001f, 1.9999999f,
                                3.14159265f, 0.02f,    1e-30f,      1e-38f,     1e-42f,
                                7.0f / 3,    65535.9f, 3.3895e38f};
  const RandomKey key(5);
  for (uint64_t i = 0; i < 40; ++i) numbers.push_back(static_cast<float>(key.normal(i)));
  for (const float positive : numbers) {
    for (const float x : {positive, -positive}) {
      double sum = 0, low = INFINITY, high = -INFINITY;
      for (uint32_t noise = 0; noise < kNoises; ++noise) {
        const double r = widened(round_stochastic(x, noise));
        sum += r / kNoises;  // exact: a power of two, and two neighbours are added
        low = std::min(low, r);
        high = std::max(high, r);
      }
      EXPECT_EQ(sum, static_cast<double>(x)) << x;
      // One of the two neighbours, which is x itself where it has one.
      EXPECT_LE(low, x);
      EXPECT_GE(high, x);
      const uint32_t bits = std::bit_cast<uint32_t>(x);
      EXPECT_EQ(low == high, (bits & 0xffffu) == 0) << x;
      const auto step = [](double v) {
        return std::bit_cast<int32_t>(static_cast<float>(v)) >> 16;
      };
      EXPECT_LE(std::abs(step(high) - step(low)), 1) << x;
    }
  }
}

TEST(StochasticRounding, NotFiniteStaysWhatItIs) {
  for (const uint32_t noise : {0u, 1u, 32768u, 65535u}) {
    EXPECT_EQ(widened(round_stochastic(INFINITY, noise)), INFINITY);
    EXPECT_EQ(widened(round_stochastic(-INFINITY, noise)), -INFINITY);
    for (const uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xffffffffu, 0xff800001u})
      EXPECT_TRUE(std::isnan(widened(round_stochastic(std::bit_cast<float>(bits), noise)))) << bits;
  }
}

// The noise of global element g, in words of its own.
uint32_t noise_of(uint64_t key, int64_t g) {
  const Philox p = RandomKey(key).at(0, static_cast<uint64_t>(g) / 8);
  const uint32_t word = p.v[(g % 8) / 2];
  return g % 2 == 0 ? word & 0xffffu : word >> 16;
}

// The dtype of a case is that of the momenta.
class StateTest : public KernelTest {
 protected:
  Tensor weights(Shape shape, uint64_t seed, double width = 1) const {
    return random_tensor(shape, DType::bf16, seed, width);
  }
  Tensor momenta(Shape shape, uint64_t seed) const { return random_tensor(shape, dtype(), seed); }
};

double direction_of(double x) {
  return (x > 0) - (x < 0);
}

// What a sign step leaves: in double, rounded to f32 and then by the noise of the element's place.
// An f32 step may differ from it by a rounding of f32; the two outcomes then differ only where the
// noise is as near to the edge.
void expect_step(ConstTensorView after, const Doubles& before, const Doubles& m,
                 const std::function<double(size_t)>& rate, double decay,
                 const StochasticRounding& rounding, const std::function<int64_t(int64_t)>& place) {
  const Doubles got = to_doubles(after);
  size_t edges = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double exact = before[i] - rate(i) * (direction_of(m[i]) + decay * before[i]);
    const uint32_t noise = noise_of(rounding.key, place(static_cast<int64_t>(i)));
    const double expected = widened(round_stochastic(static_cast<float>(exact), noise));
    if (got[i] == expected) continue;
    ++edges;
    ASSERT_NEAR(got[i], expected, std::abs(expected) / 100 + 1e-30) << i;
  }
  EXPECT_LE(edges, got.size() / 500 + 1);
}

TEST_P(StateTest, SignStepsAgainstTheOracle) {
  for (const int64_t n : {0, 1, 7, 8, 255, 513, 70001}) {
    Tensor theta = weights({n}, 1, 0.02), m = momenta({n}, 2);
    const Doubles before = to_doubles(theta);
    const StochasticRounding rounding{.key = 77, .index = {}};
    const ParameterUpdate update{
        .step = SignStep{1e-4, 0.01}, .theta = theta, .momentum = m, .rounding = rounding};
    update_parameters({&update, 1});
    expect_step(
        theta, before, to_doubles(m), [](size_t) { return 1e-4; }, 0.01, rounding,
        [](int64_t i) { return i; });
    // Not where a pack begins; as a part that begins within a Philox block.
    const OddlyPlaced odd(weights({n}, 1, 0.02));
    ParameterUpdate same = update;
    same.theta = odd;
    update_parameters({&same, 1});
    EXPECT_TRUE(same_bits(odd, theta));
    Tensor within = weights({n}, 1, 0.02);
    same.theta = within;
    same.rounding.index.first = 13;
    update_parameters({&same, 1});
    expect_step(
        within, before, to_doubles(m), [](size_t) { return 1e-4; }, 0.01, rounding,
        [](int64_t i) { return 13 + i; });
  }
}

TEST_P(StateTest, RowsAgainstTheOracle) {
  for (const int64_t width : {37, 40}) {
    const int64_t rows = 30;
    Tensor all = weights({rows, width}, 1, 0.05), some = weights({rows, width}, 1, 0.05);
    const Tensor m = momenta({rows, width}, 2);
    const Doubles before = to_doubles(all), direction = to_doubles(m);
    const auto rate_of_row = [&](size_t i) {
      const size_t first = i / width * width;
      double squares = 0;
      for (size_t j = first; j < first + width; ++j) squares += before[j] * before[j];
      return static_cast<double>(static_cast<float>(
          0.01 * std::max(std::sqrt(squares / static_cast<double>(width)), 0.001)));
    };
    const StochasticRounding rounding{.key = 3, .index = {}};
    sign_update_by_row(m, 0.01, 0.001, 0.25, all, rounding);
    expect_step(all, before, direction, rate_of_row, 0.25, rounding, [](int64_t i) { return i; });
    // The rows that are chosen get what they get among all, the others nothing.
    const std::array<int64_t, 3> chosen = {29, 0, 4};
    const std::array<double, 3> rates = {0.01, 0.01, 0.01};
    sign_update_of_rows(m, chosen, rates, 0.001, 0.25, some, rounding);
    const Doubles whole = to_doubles(all), part = to_doubles(some);
    for (size_t i = 0; i < part.size(); ++i) {
      const auto row = static_cast<int64_t>(i / static_cast<size_t>(width));
      const bool moved = std::find(chosen.begin(), chosen.end(), row) != chosen.end();
      EXPECT_EQ(part[i], moved ? whole[i] : before[i]) << i;
    }
    // Not where a pack begins.
    const OddlyPlaced odd(weights({rows, width}, 1, 0.05));
    sign_update_by_row(OddlyPlaced(m), 0.01, 0.001, 0.25, odd, rounding);
    EXPECT_TRUE(same_bits(odd, all));
  }
}

// A part along any axis gets the bits that it has in the whole; also one of whole Philox blocks.
TEST_P(StateTest, PartsGetTheBitsOfTheWhole) {
  for (const int64_t inner : {7, 8}) {
    const int64_t outer = 5, axis = 11;
    const Tensor theta = test::random_tensor({outer, axis, inner}, DType::bf16, 1, 0.02);
    const Tensor m = test::random_tensor({outer, axis, inner}, dtype(), 2);
    const auto step = [&](ConstTensorView weights, ConstTensorView momentum, GlobalIndex index) {
      Tensor w = copy_on(device(), weights), v = copy_on(device(), momentum);
      const ParameterUpdate update{.step = SignStep{1e-4, 0.01},
                                   .theta = w,
                                   .momentum = v,
                                   .rounding = {.key = 9, .index = index}};
      update_parameters({&update, 1});
      return copy_on(Device::cpu(), w);
    };
    const Tensor whole = step(theta, m, {});
    const auto cut = [&](const Tensor& from, int64_t first, int64_t count) {
      Tensor part({outer, count, inner}, from.dtype());
      for (int64_t o = 0; o < outer; ++o)
        copy(part.view().slice(o, 1).reshape({count, inner}),
             from.view().slice(o, 1).reshape({axis, inner}).slice(first, count));
      return part;
    };
    size_t wrong = 0;
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {4, 6}, {10, 1}}) {
      const GlobalIndex index{
          .first = first * inner, .run = count * inner, .distance = axis * inner};
      const Tensor part = step(cut(theta, first, count), cut(m, first, count), index);
      EXPECT_TRUE(same_bits(part, cut(whole, first, count))) << first;
      // The mistake that must show: the noise of the local place.
      wrong += !same_bits(step(cut(theta, first, count), cut(m, first, count), {}),
                          cut(whole, first, count));
    }
    EXPECT_EQ(wrong, 3u);
  }
}

TEST_P(StateTest, ThreadsDoNotMatter) {
  expect_same_for_any_threads([&] {
    std::vector<Tensor> r;
    r.push_back(weights({200, 333}, 1, 0.02));
    r.push_back(weights({200, 333}, 2, 0.02));
    Tensor m = momenta({200, 333}, 3);
    const ParameterUpdate update{.step = SignStep{1e-4, 0.01},
                                 .theta = r[0],
                                 .momentum = m,
                                 .rounding = {.key = 5, .index = {}}};
    update_parameters({&update, 1});
    sign_update_by_row(m, 1e-3, 0, 0.01, r[1], {.key = 6, .index = {}});
    return r;
  });
}

// Steps of a seventh of the distance between neighbours: on average a weight moves as far as the
// steps together. Rounded to nearest it never moves, and with noise that forgets the step most
// weights never do.
TEST_P(StateTest, SmallStepsAddUp) {
  const int64_t n = 4096, steps = 350;
  const double start = 0.02001953125, distance = 0x1p-13, rate = distance / 7;  // start in bf16
  enum class Noise : uint8_t { of_step, of_first_step, none };
  const auto train = [&](Noise noise) {
    Tensor theta = filled({n}, DType::bf16, start), m = filled({n}, dtype(), -1);
    Tensor in_f32 = filled({n}, DType::f32, 0), m_f32 = filled({n}, DType::f32, -1);
    for (int64_t t = 0; t < steps; ++t) {
      const RandomKey key =
          RandomKey(1).fold(noise == Noise::of_step ? static_cast<uint64_t>(t) : 0);
      if (noise != Noise::none) {
        const ParameterUpdate update{.step = SignStep{rate, 0},
                                     .theta = theta,
                                     .momentum = m,
                                     .rounding = {.key = key.value(), .index = {}}};
        update_parameters({&update, 1});
        continue;
      }
      cast(theta, in_f32);
      const ParameterUpdate update{SignStep{rate, 0}, in_f32, m_f32};
      update_parameters({&update, 1});
      cast(in_f32, theta);
    }
    return to_doubles(theta);
  };
  const double way = static_cast<double>(steps) * rate;  // 50 distances; stays below 0.03125
  const auto mean_and_spread = [&](const Doubles& theta) {
    double sum = 0, squares = 0, still = 0;
    for (const double x : theta) {
      const double moved = (x - start) / way;
      sum += moved / static_cast<double>(n);
      squares += (moved - 1) * (moved - 1) / static_cast<double>(n);
      still += x == start;
    }
    return std::array<double, 3>{sum, std::sqrt(squares), still / static_cast<double>(n)};
  };
  // Each step moves by the distance with probability 1/7: binomial.
  const double spread = std::sqrt(static_cast<double>(steps) * (1.0 / 7) * (6.0 / 7)) / 50;
  const auto stochastic = mean_and_spread(train(Noise::of_step));
  EXPECT_NEAR(stochastic[0], 1, 4 * spread / std::sqrt(static_cast<double>(n)));
  EXPECT_NEAR(stochastic[1], spread, 0.1 * spread);
  EXPECT_EQ(stochastic[2], 0);

  EXPECT_EQ(mean_and_spread(train(Noise::none))[2], 1);  // to nearest: all stand still
  const auto forgetful = mean_and_spread(train(Noise::of_first_step));
  EXPECT_GT(forgetful[1], 5 * spread);
  EXPECT_NEAR(forgetful[2], 6.0 / 7, 0.03);
}

// The rules with a gradient of their own keep f32 beside the weights.
TEST_P(StateTest, LionAndAdamW) {
  const int64_t n = 3001;
  const StochasticRounding rounding{.key = 21, .index = {}};
  for (const bool adam : {false, true}) {
    Tensor theta = weights({n}, 1, 0.02), narrow = momenta({n}, 2);
    Tensor m = random_tensor({n}, DType::f32, 2), v = filled({n}, DType::f32, 0.3);
    const Tensor g = random_tensor({n}, DType::f32, 3);
    Tensor wide = empty({n}, DType::f32), m_wide = random_tensor({n}, DType::f32, 2),
           v_wide = filled({n}, DType::f32, 0.3);
    cast(theta, wide);
    ParameterUpdate rounded{LionStep{1e-4, 0.1, 0.9, 0.98}, theta, m, g};
    ParameterUpdate exact{rounded.step, wide, m_wide, g};
    if (adam) {
      rounded.step = exact.step = AdamWStep{1e-4, 0.1, 0.9, 0.99, 1e-8, 3};
      rounded.second_moment = v;
      exact.second_moment = v_wide;
    }
    rounded.rounding = rounding;
    update_parameters({&rounded, 1});
    update_parameters({&exact, 1});
    const Doubles got = to_doubles(theta), expected = to_doubles(wide);
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(got[i], widened(round_stochastic(static_cast<float>(expected[i]),
                                                 noise_of(21, static_cast<int64_t>(i)))))
          << i;
    EXPECT_TRUE(same_bits(m, m_wide));
    EXPECT_TRUE(same_bits(v, v_wide));
    if (dtype() == DType::bf16) {
      rounded.momentum = narrow;
      EXPECT_THROW(update_parameters({&rounded, 1}), InternalError);
    }
  }
}

// What a GPU makes in a launch for each pair of dtypes is what the CPU makes one after another.
TEST_P(StateTest, ManyAtOnce) {
  const auto tensors = [&](Device where) {
    std::vector<Tensor> all;
    for (const int64_t n : {16385, 9, 40000, 700})
      for (const DType type : {DType::bf16, dtype(), DType::f32, DType::f32})
        all.push_back(test::random_tensor({n}, type, all.size() + 1, 0.1, where));
    return all;
  };
  const auto updates = [&](std::vector<Tensor>& all) {
    std::vector<ParameterUpdate> list;
    for (size_t i = 0; i < all.size(); i += 4) {
      list.push_back({.step = SignStep{0.01, 0.1},
                      .theta = all[i],
                      .momentum = all[i + 1],
                      .rounding = {.key = i, .index = {}}});
      list.push_back({SignStep{0.01, 0}, all[i + 2], all[i + 3]});
    }
    return list;
  };
  std::vector<Tensor> together = tensors(device()), apart = tensors(Device::cpu());
  update_parameters(updates(together));
  for (const ParameterUpdate& u : updates(apart)) update_parameters({&u, 1});
  for (size_t i = 0; i < apart.size(); ++i)
    EXPECT_TRUE(same_bits(together[i], apart[i])) << "tensor " << i;
  Tensor theta = filled({3}, DType::f32, 1), narrow = filled({3}, DType::bf16, 1);
  const ParameterUpdate wrong{SignStep{0.01, 0}, theta, narrow};
  EXPECT_THROW(update_parameters({&wrong, 1}), InternalError);
}

AMUR_KERNEL_CASES(StateTest, all_targets(), DType::f32, DType::bf16);

}  // namespace
}  // namespace amur::test
