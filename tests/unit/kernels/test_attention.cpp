#include "kernels/attention.h"

#include <dlfcn.h>

#include <array>
#include <map>
#include <string>

#include "kernels/attention_engine.h"
#include "kernels/dropout_math.h"
#include "src/core/hash.h"
#include "tests/support/cudnn_stand_in.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class AttentionTest : public KernelTest {
 protected:
  // A GPU multiplies bf16, so it rounds the probabilities and their gradients as well.
  double tolerance_of_elements() const {
    if (dtype() != DType::bf16) return 60 * rounding(dtype());
    return (device() == Device::cpu() ? 2 : 4) * rounding(dtype());
  }
};

constexpr DropoutSite kNoDropout{};
// Around the tiles of every kernel.
const std::vector<int32_t> kLengths = {1, 7, 2, 16, 33, 5, 1, 70, 15, 17, 63, 64, 65};

struct Oracle {
  Doubles output, lse, d_qkv;
};

Oracle computed_oracle(const Sequences& sequences, int64_t heads, int64_t size, const Doubles& qkv,
                       double scale, const DropoutSite& dropout, const Doubles& d_output,
                       size_t window) {
  const size_t h_count = static_cast<size_t>(heads), hd = static_cast<size_t>(size);
  const size_t tokens = static_cast<size_t>(sequences.tokens());
  Oracle o{Doubles(tokens * h_count * hd), Doubles(tokens * h_count), Doubles(qkv.size())};
  const auto at = [&](size_t t, size_t part, size_t h) {
    return ((t * 3 + part) * h_count + h) * hd;
  };
  for (size_t s = 0; s < sequences.count(); ++s) {
    const size_t begin = static_cast<size_t>(sequences.starts[s]);
    const size_t n = static_cast<size_t>(sequences.starts[s + 1]) - begin;
    const uint64_t key = dropout_key(sequences.keys.as<int64_t>()[s], dropout.layer, dropout.site);
    for (size_t h = 0; h < h_count; ++h) {
      for (size_t t = 0; t < n; ++t) {
        Doubles p(n), mask(n, 1.0), dp(n);
        double sum = 0;
        for (size_t u = 0; u < n; ++u) {
          if (window > 0 && (u > t + window || t > u + window)) continue;  // p[u] stays 0
          double score = 0;
          for (size_t j = 0; j < hd; ++j)
            score += qkv[at(begin + t, 0, h) + j] * qkv[at(begin + u, 1, h) + j];
          p[u] = std::exp(scale * score);
          sum += p[u];
          if (dropout.probability > 0)
            mask[u] = dropout_lane(key, t, h * 65536 + u) < dropout_threshold(dropout.probability)
                          ? 0
                          : 1 / (1 - dropout.probability);
        }
        o.lse[(begin + t) * h_count + h] = std::log(sum);
        double along = 0;
        for (size_t u = 0; u < n; ++u) {
          p[u] /= sum;
          for (size_t j = 0; j < hd; ++j) {
            const double d = d_output[((begin + t) * h_count + h) * hd + j];
            const double v = qkv[at(begin + u, 2, h) + j];
            o.output[((begin + t) * h_count + h) * hd + j] += p[u] * mask[u] * v;
            o.d_qkv[at(begin + u, 2, h) + j] += p[u] * mask[u] * d;
            dp[u] += d * v * mask[u];
          }
          along += p[u] * dp[u];
        }
        for (size_t u = 0; u < n; ++u) {
          const double ds = scale * p[u] * (dp[u] - along);
          for (size_t j = 0; j < hd; ++j) {
            o.d_qkv[at(begin + t, 0, h) + j] += ds * qkv[at(begin + u, 1, h) + j];
            o.d_qkv[at(begin + u, 1, h) + j] += ds * qkv[at(begin + t, 0, h) + j];
          }
        }
      }
    }
  }
  return o;
}

// `window`: how far a query sees; 0: to the ends. Computed once for all sets of instructions, which
// are given the same numbers.
const Oracle& oracle(const Sequences& sequences, int64_t heads, int64_t size, const Doubles& qkv,
                     double scale, const DropoutSite& dropout, const Doubles& d_output,
                     size_t window = 0) {
  std::string bytes;
  const auto add = [&](const void* from, size_t count) {
    bytes.append(static_cast<const char*>(from), count);
  };
  const auto add_all = [&](const auto& values) {
    add(values.data(), values.size() * sizeof(values[0]));
  };
  add_all(sequences.starts);
  add(sequences.keys.view().raw(), sequences.keys.bytes());
  add_all(qkv);
  add_all(d_output);
  add_all(std::array{scale, dropout.probability});
  add_all(std::array<uint64_t, 5>{static_cast<uint64_t>(heads), static_cast<uint64_t>(size), window,
                                  dropout.layer, dropout.site});
  static std::map<uint64_t, Oracle> known;
  const auto [found, is_new] = known.try_emplace(fnv1a(bytes));
  if (is_new)
    found->second = computed_oracle(sequences, heads, size, qkv, scale, dropout, d_output, window);
  return found->second;
}

TEST_P(AttentionTest, MatchesTheDefinition) {
  const Sequences sequences(kLengths, 1000, device());
  const int64_t tokens = sequences.tokens();
  for (const auto& [heads, size] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {2, 8}, {4, 32}, {2, 64}, {1, 100}}) {
    for (const DropoutSite& dropout : {kNoDropout, DropoutSite{0.3, 2, 5}}) {
      const Tensor qkv = random_tensor({tokens, 3, heads, size}, dtype(), 1);
      const Tensor d_output = random_tensor({tokens, heads, size}, dtype(), 2);
      const double scale = 1 / std::sqrt(static_cast<double>(size));
      const Oracle& o =
          oracle(sequences, heads, size, to_doubles(qkv), scale, dropout, to_doubles(d_output));
      Tensor output = empty({tokens, heads, size}, dtype()),
             lse = empty({tokens, heads}, parameter());
      Tensor d_qkv = empty({tokens, 3, heads, size}, dtype());
      attention_forward(sequences.packed, qkv, scale, dropout, output, lse);
      attention_backward(sequences.packed, d_output, qkv, output, lse, scale, dropout, d_qkv);
      const double tolerance = tolerance_of_elements();
      const std::string what =
          fmt::format("{} heads of {}, p {}", heads, size, dropout.probability);
      expect_near(output, o.output, tolerance, what);
      expect_near(lse, o.lse, 60 * rounding(parameter()), what);
      expect_near(d_qkv, o.d_qkv, tolerance, what + " gradient");
    }
  }
}

// A GPU computes gradients of texts up to 64 or 128 tokens, by the size of a head, in another way
// than those of longer ones.
TEST_P(AttentionTest, ShortAndLongTextsMatchTheDefinition) {
  const Sequences sequences({128, 1, 129, 20, 64, 65, 161}, 1000, device());
  const int64_t tokens = sequences.tokens();
  for (const auto& [size, probability] :
       {std::pair<int64_t, double>{13, 0}, {32, 0.3}, {64, 0}, {64, 0.3}, {128, 0}}) {
    const DropoutSite dropout{probability, 2, 5};
    const Tensor qkv = random_tensor({tokens, 3, 1, size}, dtype(), 1);
    const Tensor d_output = random_tensor({tokens, 1, size}, dtype(), 2);
    const double scale = 1 / std::sqrt(static_cast<double>(size));
    const Oracle& o =
        oracle(sequences, 1, size, to_doubles(qkv), scale, dropout, to_doubles(d_output));
    Tensor output = empty({tokens, 1, size}, dtype()), lse = empty({tokens, 1}, parameter());
    Tensor d_qkv = empty({tokens, 3, 1, size}, dtype());
    attention_forward(sequences.packed, qkv, scale, dropout, output, lse);
    attention_backward(sequences.packed, d_output, qkv, output, lse, scale, dropout, d_qkv);
    const std::string what = fmt::format("heads of {}, p {}", size, probability);
    expect_near(output, o.output, tolerance_of_elements(), what);
    expect_near(lse, o.lse, 60 * rounding(parameter()), what);
    expect_near(d_qkv, o.d_qkv, tolerance_of_elements(), what + " gradient");
  }
}

TEST_P(AttentionTest, AWindowMatchesTheDefinition) {
  const Sequences sequences({1, 7, 2, 33, 130, 64}, 1000, device());
  const int64_t tokens = sequences.tokens();
  const DropoutSite drops{0.3, 2, 5};
  const struct {
    int64_t heads, size, window;
    DropoutSite dropout;
  } cases[] = {{1, 1, 1, drops}, {3, 5, 4, kNoDropout}, {2, 64, 17, drops}, {1, 128, 65, drops}};
  for (const auto& c : cases) {
    const Tensor qkv = random_tensor({tokens, 3, c.heads, c.size}, dtype(), 1);
    const Tensor d_output = random_tensor({tokens, c.heads, c.size}, dtype(), 2);
    const double scale = 1 / std::sqrt(static_cast<double>(c.size));
    const Oracle& o = oracle(sequences, c.heads, c.size, to_doubles(qkv), scale, c.dropout,
                             to_doubles(d_output), static_cast<size_t>(c.window));
    Tensor output = empty({tokens, c.heads, c.size}, dtype()),
           lse = empty({tokens, c.heads}, parameter());
    Tensor d_qkv = empty({tokens, 3, c.heads, c.size}, dtype());
    attention_forward(sequences.packed, qkv, scale, c.dropout, output, lse, c.window);
    attention_backward(sequences.packed, d_output, qkv, output, lse, scale, c.dropout, d_qkv,
                       c.window);
    const double tolerance = tolerance_of_elements();
    const std::string what = fmt::format("{} heads of {}, window {}", c.heads, c.size, c.window);
    expect_near(output, o.output, tolerance, what);
    expect_near(lse, o.lse, 60 * rounding(parameter()), what);
    expect_near(d_qkv, o.d_qkv, tolerance, what + " gradient");
  }
}

struct Results {
  Tensor output, lse, d_qkv;
};

TEST_P(AttentionTest, AWindowThatHoldsTheTextGivesTheSameBits) {
  const int32_t longest = 71;
  const Sequences sequences({longest, 1, 18, 40}, 1000, device());
  const int64_t tokens = sequences.tokens(), heads = 2, size = 20;
  const Tensor qkv = random_tensor({tokens, 3, heads, size}, dtype(), 1);
  const Tensor d_output = random_tensor({tokens, heads, size}, dtype(), 2);
  for (const DropoutSite& dropout : {kNoDropout, DropoutSite{0.3, 2, 5}}) {
    const auto run = [&](int64_t window) {
      Results r{empty({tokens, heads, size}, dtype()), empty({tokens, heads}, parameter()),
                empty({tokens, 3, heads, size}, dtype())};
      attention_forward(sequences.packed, qkv, 0.3, dropout, r.output, r.lse, window);
      attention_backward(sequences.packed, d_output, qkv, r.output, r.lse, 0.3, dropout, r.d_qkv,
                         window);
      return r;
    };
    const Results whole = run(0);
    for (const int64_t window : {longest - 1, longest, 1 << 30}) {
      const Results r = run(window);
      EXPECT_TRUE(same_bits(r.output, whole.output)) << window;
      EXPECT_TRUE(same_bits(r.lse, whole.lse)) << window;
      EXPECT_TRUE(same_bits(r.d_qkv, whole.d_qkv)) << window;
    }
    // One pair fewer shows.
    EXPECT_FALSE(same_bits(run(longest - 2).lse, whole.lse));
  }
}

TEST_P(AttentionTest, WhatLiesOutsideOfTheWindowChangesNothing) {
  const int64_t n = 90, heads = 1, size = 8, window = 9, moved = 40;
  const Sequences sequences({static_cast<int32_t>(n)}, 1000, device());
  Doubles values = random_doubles(n * 3 * heads * size, 1);
  const auto run = [&] {
    const Tensor qkv = from_doubles(values, {n, 3, heads, size}, dtype(), device());
    Results r{empty({n, heads, size}, dtype()), empty({n, heads}, parameter()), {}};
    attention_forward(sequences.packed, qkv, 0.5, kNoDropout, r.output, r.lse, window);
    return r;
  };
  const Results before = run();
  for (int64_t j = 0; j < 3 * heads * size; ++j)
    values[static_cast<size_t>(moved * 3 * heads * size + j)] = 50;
  const Results after = run();
  for (int64_t t = 0; t < n; ++t)
    EXPECT_EQ(same_bits(before.output.view().slice(t, 1), after.output.view().slice(t, 1)),
              std::abs(t - moved) > window)
        << t;
}

TEST_P(AttentionTest, SequencesDoNotSeeEachOther) {
  // A sequence gives the same bits alone, among shorter ones and among longer ones.
  const int64_t heads = 2, size = 24;
  const std::vector<int32_t> lengths = {33, 2, 70, 15, 140};
  const size_t looked_at = 2;
  const auto first = [&](size_t count) {
    return std::vector<int32_t>(lengths.begin(), lengths.begin() + static_cast<int64_t>(count));
  };
  const Sequences all(lengths, 1000, device()), shorter(first(4), 1000, device()),
      alone({lengths[looked_at]}, 1000 + looked_at, device());
  const Tensor qkv = random_tensor({all.tokens(), 3, heads, size}, dtype(), 1);
  const Tensor d_output = random_tensor({all.tokens(), heads, size}, dtype(), 2);
  const int64_t begin = all.starts[looked_at], n = lengths[looked_at];
  const DropoutSite dropout{0.2, 1, 1};
  const auto run = [&](const Sequences& sequences, int64_t from, int64_t window) {
    const int64_t tokens = sequences.tokens();
    Results r{empty({tokens, heads, size}, dtype()), empty({tokens, heads}, parameter()),
              empty({tokens, 3, heads, size}, dtype())};
    const ConstTensorView part = qkv.view().slice(from, tokens);
    attention_forward(sequences.packed, part, 0.2, dropout, r.output, r.lse, window);
    attention_backward(sequences.packed, d_output.view().slice(from, tokens), part, r.output, r.lse,
                       0.2, dropout, r.d_qkv, window);
    return r;
  };
  for (const int64_t window : {0, 6, 40}) {
    const Results one = run(alone, begin, window);
    for (const Sequences* others : {&all, &shorter}) {
      const Results together = run(*others, 0, window);
      EXPECT_TRUE(same_bits(together.output.view().slice(begin, n), one.output)) << window;
      EXPECT_TRUE(same_bits(together.lse.view().slice(begin, n), one.lse)) << window;
      EXPECT_TRUE(same_bits(together.d_qkv.view().slice(begin, n), one.d_qkv)) << window;
    }
  }
}

TEST_P(AttentionTest, ALongText) {
  const int64_t n = device() == Device::cpu() ? 300 : is_emulated(device()) ? 900 : 8192;
  const int64_t heads = 1, size = 8;
  const Sequences sequences({static_cast<int32_t>(n)}, 1000, device());
  const Tensor qkv = random_tensor({n, 3, heads, size}, dtype(), 1);
  const Tensor d_output = random_tensor({n, heads, size}, dtype(), 2);
  const DropoutSite dropout{0.3, 2, 5};
  const Oracle& o =
      oracle(sequences, heads, size, to_doubles(qkv), 0.5, dropout, to_doubles(d_output));
  Tensor output = empty({n, heads, size}, dtype()), lse = empty({n, heads}, parameter());
  Tensor d_qkv = empty({n, 3, heads, size}, dtype());
  attention_forward(sequences.packed, qkv, 0.5, dropout, output, lse);
  attention_backward(sequences.packed, d_output, qkv, output, lse, 0.5, dropout, d_qkv);
  // Many small values: against the size of all of them.
  const auto error = [](ConstTensorView actual, const Doubles& expected) {
    Doubles difference = to_doubles(actual);
    for (size_t i = 0; i < expected.size(); ++i) difference[i] -= expected[i];
    return std::sqrt(dot(difference, difference) / dot(expected, expected));
  };
  const double tolerance = (dtype() == DType::bf16 ? 1 : 60) * rounding(dtype());
  EXPECT_LE(error(output, o.output), tolerance);
  EXPECT_LE(error(lse, o.lse), 60 * rounding(parameter()));
  EXPECT_LE(error(d_qkv, o.d_qkv), tolerance);
}

TEST_P(AttentionTest, LargeScoresStayFinite) {
  const Sequences sequences({9}, 1000, device());
  const Tensor qkv = random_tensor({9, 3, 1, 16}, dtype(), 1, 60);
  Tensor output = empty({9, 1, 16}, dtype()), lse = empty({9, 1}, parameter());
  Tensor d_qkv = empty({9, 3, 1, 16}, dtype());
  attention_forward(sequences.packed, qkv, 1, kNoDropout, output, lse);
  attention_backward(sequences.packed, output, qkv, output, lse, 1, kNoDropout, d_qkv);
  for (double v : to_doubles(output)) EXPECT_TRUE(std::isfinite(v));
  for (double v : to_doubles(d_qkv)) EXPECT_TRUE(std::isfinite(v));
}

// Their log-sum-exp is far below 0 too: what lies behind a text's end has to count as nothing.
TEST_P(AttentionTest, ScoresFarBelowZeroStayFinite) {
  const Sequences sequences({9, 40}, 1000, device());
  const int64_t tokens = sequences.tokens(), size = 16;
  Doubles values = random_doubles(tokens * 3 * size, 1);
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t part = i / static_cast<size_t>(size) % 3;
    values[i] = part == 0 ? 6 + values[i] / 8 : part == 1 ? values[i] / 8 - 6 : values[i];
  }
  const Tensor qkv = from_doubles(values, {tokens, 3, 1, size}, dtype(), device());
  Tensor output = empty({tokens, 1, size}, dtype()), lse = empty({tokens, 1}, parameter());
  Tensor d_qkv = empty({tokens, 3, 1, size}, dtype());
  attention_forward(sequences.packed, qkv, 1, kNoDropout, output, lse);
  attention_backward(sequences.packed, output, qkv, output, lse, 1, kNoDropout, d_qkv);
  for (double v : to_doubles(lse)) EXPECT_NEAR(v, -570, 30);
  for (double v : to_doubles(output)) EXPECT_TRUE(std::isfinite(v));
  for (double v : to_doubles(d_qkv)) EXPECT_TRUE(std::isfinite(v));
}

TEST_P(AttentionTest, EmptyAndThreads) {
  const Sequences none({}, 1000, device());
  Tensor nothing = empty({0, 3, 2, 8}, dtype()), o = empty({0, 2, 8}, dtype());
  Tensor no_lse = empty({0, 2}, parameter());
  attention_forward(none.packed, nothing, 1, kNoDropout, o, no_lse);
  attention_backward(none.packed, o, nothing, o, no_lse, 1, kNoDropout, nothing);

  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < 60; ++i) lengths.push_back(1 + i * 7 % 23);
  const Sequences sequences(lengths, 1000, device());
  const int64_t tokens = sequences.tokens();
  const Tensor qkv = random_tensor({tokens, 3, 2, 20}, dtype(), 1);
  const DropoutSite dropout{0.1, 3, 1};
  for (const int64_t window : {0, 3})
    expect_same_for_any_threads([&] {
      std::vector<Tensor> r;
      r.push_back(empty({tokens, 2, 20}, dtype()));
      r.push_back(empty({tokens, 2}, parameter()));
      r.push_back(empty({tokens, 3, 2, 20}, dtype()));
      attention_forward(sequences.packed, qkv, 0.3, dropout, r[0], r[1], window);
      attention_backward(sequences.packed, r[0], qkv, r[0], r[1], 0.3, dropout, r[2], window);
      return r;
    });
}

TEST_P(AttentionTest, RotaryMatchesTheDefinitionAndTurnsBack) {
  const Sequences sequences({1, 9, 40}, 1000, device());
  const int64_t tokens = sequences.tokens(), heads = 3;
  for (const auto& [size, period] :
       {std::pair<int64_t, int64_t>{2, 2}, {6, 6}, {32, 32}, {64, 64}, {64, 16}, {14, 6}}) {
    const Tensor before = random_tensor({tokens, 3, heads, size}, dtype(), 1);
    Tensor qkv = empty({tokens, 3, heads, size}, dtype());
    copy(qkv, before);
    rotary(sequences.packed, 10000, period, false, qkv);
    Doubles expected = to_doubles(before);
    for (size_t s = 0; s < sequences.count(); ++s) {
      for (int64_t t = sequences.starts[s]; t < sequences.starts[s + 1]; ++t) {
        for (int64_t h = 0; h < 2 * heads; ++h) {
          for (int64_t j = 0; j < size / 2; ++j) {
            const double angle = static_cast<double>(t - sequences.starts[s]) *
                                 std::pow(10000.0, -2.0 * static_cast<double>(j % (period / 2)) /
                                                       static_cast<double>(period));
            double& x = expected[static_cast<size_t>((t * 3 * heads + h) * size + j)];
            double& y = expected[static_cast<size_t>((t * 3 * heads + h) * size + j + size / 2)];
            const double rotated = x * std::cos(angle) - y * std::sin(angle);
            y = y * std::cos(angle) + x * std::sin(angle);
            x = rotated;
          }
        }
      }
    }
    expect_near(qkv, expected, 4 * rounding(dtype()), "rotated");
    rotary(sequences.packed, 10000, period, true, qkv);
    expect_near(qkv, to_doubles(before), 8 * rounding(dtype()), "turned back");
  }
}

AMUR_ALL_KERNEL_CASES(AttentionTest);

// cuDNN's engine, where there is a GPU and cuDNN.
class CudnnAttentionTest : public KernelTest {
 protected:
  // What the two passes give, each by its engine.
  Results run(const Sequences& sequences, const Tensor& qkv, const Tensor& d_output, double scale,
              AttentionEngine forward, AttentionEngine backward) {
    const int64_t tokens = qkv.shape()[0], heads = qkv.shape()[2], size = qkv.shape()[3];
    Results r{empty({tokens, heads, size}, dtype()), empty({tokens, heads}, parameter()),
              empty({tokens, 3, heads, size}, dtype())};
    use_attention_engines({forward, {}}, device());
    attention_forward(sequences.packed, qkv, scale, kNoDropout, r.output, r.lse);
    use_attention_engines({backward, {}}, device());
    attention_backward(sequences.packed, d_output, qkv, r.output, r.lse, scale, kNoDropout,
                       r.d_qkv);
    use_attention_engines({}, device());
    return r;
  }
};

std::vector<Target> cudnn_targets() {
  std::vector<Target> targets = all_targets();
  std::erase_if(targets, [](const Target& t) { return other_attention_library(t.device).empty(); });
  return targets;
}

TEST_P(CudnnAttentionTest, MatchesTheDefinitionWhicheverPassItDoes) {
  using enum AttentionEngine;
  const Sequences sequences(kLengths, 1000, device());
  const int64_t tokens = sequences.tokens();
  for (const auto& [heads, size] : {std::pair<int64_t, int64_t>{4, 32}, {2, 64}, {1, 128}}) {
    const Tensor qkv = random_tensor({tokens, 3, heads, size}, dtype(), 1);
    const Tensor d_output = random_tensor({tokens, heads, size}, dtype(), 2);
    const double scale = 1 / std::sqrt(static_cast<double>(size));
    const Oracle& o =
        oracle(sequences, heads, size, to_doubles(qkv), scale, kNoDropout, to_doubles(d_output));
    for (const auto& [forward, backward] :
         {std::pair{cudnn, cudnn}, std::pair{own, cudnn}, std::pair{cudnn, own}}) {
      const Results r = run(sequences, qkv, d_output, scale, forward, backward);
      const std::string what = fmt::format("{} heads of {}, {} and {}", heads, size,
                                           amur::name_of(forward), amur::name_of(backward));
      expect_near(r.output, o.output, 4 * rounding(dtype()), what);
      expect_near(r.lse, o.lse, 100 * rounding(parameter()), what);
      // Its row sums are those of the rounded output.
      expect_near(r.d_qkv, o.d_qkv, 8 * rounding(dtype()), what + " gradient");
    }
  }
}

TEST_P(CudnnAttentionTest, GivesTheSameBitsTwice) {
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < 100; ++i) lengths.push_back(1 + i * 37 % 500);
  const Sequences sequences(lengths, 1000, device());
  const Tensor qkv = random_tensor({sequences.tokens(), 3, 12, 64}, dtype(), 1);
  const Tensor d_output = random_tensor({sequences.tokens(), 12, 64}, dtype(), 2);
  const auto once = [&] {
    return run(sequences, qkv, d_output, 0.125, AttentionEngine::cudnn, AttentionEngine::cudnn);
  };
  const Results first = once();
  for (int i = 0; i < 5; ++i) {
    const Results again = once();
    EXPECT_TRUE(same_bits(again.output, first.output));
    EXPECT_TRUE(same_bits(again.lse, first.lse));
    EXPECT_TRUE(same_bits(again.d_qkv, first.d_qkv));
  }
}

TEST_P(CudnnAttentionTest, IsTimedAndAgrees) {
  for (const auto direction : {AttentionDirection::forward, AttentionDirection::backward}) {
    const AttentionKind kind{direction, 12, 64, 128};
    const AttentionTimes times = time_attention_engines(kind, 8192, device());
    std::printf("%s: own %.3g s, cuDNN %.3g s %s\n", kind.text().c_str(), times.own,
                times.cudnn.value_or(0), times.problem.c_str());
    // Below sm_90, and on sm_100, cuDNN has no backward that gives the same bits twice.
    EXPECT_TRUE(times.cudnn || (direction == AttentionDirection::backward &&
                                times.problem.find("numbers") == std::string::npos))
        << times.problem;
  }
}

// For what only a stand-in of cuDNN does.
class CudnnMood {
 public:
  explicit CudnnMood(CudnnStandInMood mood) {
    if (void* library = dlopen("libcudnn_graph.so.9", RTLD_NOW | RTLD_NOLOAD))
      set_ =
          reinterpret_cast<decltype(&cudnn_stand_in_mood)>(dlsym(library, "cudnn_stand_in_mood"));
    if (set_) set_(mood);
  }
  ~CudnnMood() {
    if (set_) set_(CudnnStandInMood::honest);
  }
  CudnnMood(const CudnnMood&) = delete;
  CudnnMood& operator=(const CudnnMood&) = delete;
  bool taken() const { return set_ != nullptr; }

 private:
  decltype(&cudnn_stand_in_mood) set_ = nullptr;
};

TEST_P(CudnnAttentionTest, ACallThatItRefusesIsOurs) {
  const Sequences sequences({3, 20, 1}, 1000, device());
  const auto both_passes = [&](int64_t heads, AttentionEngine engine) {
    const Tensor qkv = random_tensor({sequences.tokens(), 3, heads, 32}, dtype(), 1);
    const Tensor d_output = random_tensor({sequences.tokens(), heads, 32}, dtype(), 2);
    return run(sequences, qkv, d_output, 0.2, engine, engine);
  };
  const auto ours = [&](int64_t heads) {
    const Results a = both_passes(heads, AttentionEngine::cudnn);
    const Results b = both_passes(heads, AttentionEngine::own);
    return same_bits(a.output, b.output) && same_bits(a.lse, b.lse) && same_bits(a.d_qkv, b.d_qkv);
  };
  {
    const CudnnMood mood(CudnnStandInMood::refuses);
    if (!mood.taken()) GTEST_SKIP() << "cuDNN itself does not do what it is told";
    EXPECT_TRUE(ours(3));
  }
  EXPECT_TRUE(ours(3));  // it is not asked again
  EXPECT_FALSE(ours(5));
}

TEST_P(CudnnAttentionTest, WrongNumbersAreSeenBeforeItIsUsed) {
  for (const auto direction : {AttentionDirection::forward, AttentionDirection::backward}) {
    const AttentionKind kind{direction, 2, 32, 64};
    const auto timed = [&] { return time_attention_engines(kind, 300, device()); };
    EXPECT_TRUE(timed().cudnn) << timed().problem;
    const CudnnMood mood(CudnnStandInMood::errs);
    if (!mood.taken()) GTEST_SKIP() << "cuDNN itself does not do what it is told";
    EXPECT_FALSE(timed().cudnn);
    EXPECT_NE(timed().problem.find("cuDNN's numbers are not those"), std::string::npos);
  }
}

AMUR_KERNEL_CASES(CudnnAttentionTest, cudnn_targets(), DType::bf16);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudnnAttentionTest);

TEST(AttentionDerivative, CentralDifferences) {
  const Sequences sequences({3, 1, 6});
  const int64_t tokens = sequences.tokens(), heads = 2, size = 5;
  const Doubles qkv = random_doubles(tokens * 3 * heads * size, 1);
  const Doubles weights = random_doubles(tokens * heads * size, 2);
  const Doubles along = random_doubles(tokens * 3 * heads * size, 3);
  const Shape shape{tokens, 3, heads, size};
  for (const auto& [dropout, window] :
       {std::pair<DropoutSite, int64_t>{kNoDropout, 0}, {{0.25, 1, 4}, 0}, {{0.25, 1, 4}, 2}}) {
    Tensor output({tokens, heads, size}, DType::f64), lse({tokens, heads}, DType::f64);
    const auto loss = [&, &dropout = dropout, window = window](const Doubles& at) {
      attention_forward(sequences.packed, from_doubles(at, shape, DType::f64), 0.7, dropout, output,
                        lse, window);
      return dot(weights, to_doubles(output));
    };
    loss(qkv);
    Tensor d_qkv(shape, DType::f64);
    attention_backward(sequences.packed, from_doubles(weights, {tokens, heads, size}, DType::f64),
                       from_doubles(qkv, shape, DType::f64), output, lse, 0.7, dropout, d_qkv,
                       window);
    EXPECT_NEAR(dot(to_doubles(d_qkv), along), slope_along(loss, qkv, along), 1e-7);
  }
}

TEST_P(AttentionTest, OnlyTheCpuTakesHeadsOfAnySize) {
  const Sequences sequences({3}, 1000, device());
  const Tensor qkv = zeros({3, 3, 1, 129}, dtype());
  Tensor o = empty({3, 1, 129}, dtype()), lse = empty({3, 1}, parameter());
  const auto run = [&] { attention_forward(sequences.packed, qkv, 1, kNoDropout, o, lse); };
  if (device() == Device::cpu())
    EXPECT_NO_THROW(run());
  else
    EXPECT_THROW(run(), UsageError);
}

TEST(AttentionErrors, WrongBoundariesAreRefused) {
  const Sequences sequences({3, 4});
  Tensor qkv = Tensor::zeros({8, 3, 1, 4}, DType::f32), o({8, 1, 4}, DType::f32),
         lse({8, 1}, DType::f32);
  EXPECT_THROW(attention_forward(sequences.packed, qkv, 1, kNoDropout, o, lse), InternalError);
  Tensor odd = Tensor::zeros({7, 3, 1, 3}, DType::f32);
  EXPECT_THROW(rotary(sequences.packed, 10000, 4, false, odd), InternalError);
  PackedSequences no_keys = sequences.packed;
  no_keys.dropout_keys = {};
  Tensor fitting = Tensor::zeros({7, 3, 1, 4}, DType::f32), o7({7, 1, 4}, DType::f32),
         lse7({7, 1}, DType::f32);
  EXPECT_THROW(attention_forward(no_keys, fitting, 1, {0.1, 0, 0}, o7, lse7), InternalError);
  EXPECT_THROW(attention_forward(sequences.packed, fitting, 1, kNoDropout, o7, lse7, -1),
               InternalError);
}

}  // namespace
}  // namespace amur::test
