#include "kernels/attention_engine.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/device_kernels.h"
#include "src/core/random.h"

namespace amur {
namespace {

constexpr int kWarmUp = 2, kRounds = 3, kCalls = 5;
// Both round the probabilities and what comes of them to bf16; statistics are f32.
constexpr double kAgreement = 8.0 / 256, kStatisticsAgree = 1.0 / 256;

// Like activations: about normal, and the same everywhere. A prime number of them, again and again.
Tensor numbers(Shape shape, uint64_t seed, Device device) {
  const RandomKey key = RandomKey(seed).fold(static_cast<uint64_t>(RandomPurpose::probe));
  std::array<bf16, 4093> some{};
  for (size_t i = 0; i < some.size(); ++i) some[i] = bf16(static_cast<float>(key.normal(i)));
  Tensor host(shape, DType::bf16);
  const auto count = static_cast<size_t>(host.elements());
  for (size_t i = 0; i < count; i += some.size())
    std::copy_n(some.begin(), std::min(some.size(), count - i), host.as<bf16>() + i);
  Tensor there(shape, DType::bf16, device);
  copy(there, host);
  return there;
}

// The largest difference, as a part of the largest number.
double difference(ConstTensorView a, ConstTensorView b) {
  Tensor x(a.shape(), a.dtype()), y(b.shape(), b.dtype());
  copy(x, a);
  copy(y, b);
  double most = 0, apart = 0;
  const bool all_finite = dispatch_float(x.dtype(), "difference", [&]<class T>() {
    for (int64_t i = 0; i < x.elements(); ++i) {
      const auto u = static_cast<double>(static_cast<AccumulateType<T>>(x.as<T>()[i]));
      const auto v = static_cast<double>(static_cast<AccumulateType<T>>(y.as<T>()[i]));
      if (!std::isfinite(u)) return false;
      apart = std::max(apart, std::abs(u - v));
      most = std::max(most, std::abs(v));
    }
    return true;
  });
  return all_finite ? apart / most : std::numeric_limits<double>::infinity();
}

Tensor copy_of(const Tensor& from) {
  Tensor to(from.shape(), from.dtype(), from.device());
  copy(to, from);
  return to;
}

void fill_with_nan(Tensor& tensor) {
  Tensor host(tensor.shape(), tensor.dtype());
  std::memset(host.view().raw(), 0xff, host.bytes());
  copy(tensor, host);
}

// One call's tensors. The backward follows our own forward.
struct Trial {
  AttentionKind kind;
  Device device;
  Tensor boundaries, qkv, output, lse, d_output, dqkv;
  PackedSequences packed;

  Trial(const AttentionKind& what, int64_t texts, Device on) : kind(what), device(on) {
    // Of several lengths, the last one short: what lies behind a text's end is seen to be left out.
    std::vector<int32_t> starts = {0};
    for (int64_t s = 0; s < texts; ++s) {
      const int64_t shorter = s + 1 == texts && texts > 1 ? kind.longest - 1 : s % 4 * 3;
      const int64_t length = std::max<int64_t>(kind.longest - shorter, 1);
      starts.push_back(starts.back() + static_cast<int32_t>(length));
    }
    boundaries = Tensor({texts + 1}, DType::i32, device);
    copy(boundaries, ConstTensorView(starts.data(), {texts + 1}, DType::i32));
    packed.cu_seqlens = boundaries;
    packed.longest = kind.longest;
    const int64_t tokens = starts.back(), h = kind.heads, d = kind.head_size;
    qkv = numbers({tokens, 3, h, d}, 1, device);
    output = Tensor({tokens, h, d}, DType::bf16, device);
    lse = Tensor({tokens, h}, DType::f32, device);
    if (kind.direction == AttentionDirection::forward) return;
    d_output = numbers({tokens, h, d}, 2, device);
    dqkv = Tensor({tokens, 3, h, d}, DType::bf16, device);
    use_attention_engines({}, device);
    attention_forward(packed, qkv, scale(), {}, output, lse);
  }

  double scale() const { return 1 / std::sqrt(static_cast<double>(kind.head_size)); }
  void call() {
    if (kind.direction == AttentionDirection::forward)
      attention_forward(packed, qkv, scale(), {}, output, lse);
    else
      attention_backward(packed, d_output, qkv, output, lse, scale(), {}, dqkv);
  }
  bool is_forward() const { return kind.direction == AttentionDirection::forward; }
  Tensor& result() { return is_forward() ? output : dqkv; }

  // The best of some rounds.
  double seconds(AttentionEngine engine) {
    use_attention_engines({engine, {}}, device);
    const Stream stream(device);
    double best = 0;
    for (int i = 0; i < kWarmUp; ++i) call();
    for (int round = 0; round < kRounds; ++round) {
      stream.synchronize();
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls; ++i) call();
      stream.synchronize();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (round == 0 || taken.count() / kCalls < best) best = taken.count() / kCalls;
    }
    return best;
  }
};

}  // namespace

const char* name_of(AttentionEngine engine) {
  return engine == AttentionEngine::own ? "own" : "cudnn";
}

const char* name_of(AttentionDirection direction) {
  return direction == AttentionDirection::forward ? "forward" : "backward";
}

std::string AttentionKind::text() const {
  return fmt::format("{}, {} heads of {}, texts of up to {} tokens", name_of(direction), heads,
                     head_size, longest);
}

AttentionEngines use_attention_engines(const AttentionEngines& engines, Device device) {
  if (device == Device::cpu()) return {};
  return device_kernels().use_attention_engines(engines);
}

std::string other_attention_library(Device device) {
  return device == Device::cpu() ? "" : device_kernels().other_attention_library();
}

AttentionTimes time_attention_engines(const AttentionKind& kind, int64_t tokens, Device device) {
  AttentionTimes times;
  const int64_t texts = std::max<int64_t>(1, tokens / kind.longest);
  times.problem = device_kernels().cudnn_problem(kind, texts, device);
  if (!times.problem.empty()) return times;
  const AttentionEngines before = use_attention_engines({}, device);
  Trial trial(kind, texts, device);
  times.own = trial.seconds(AttentionEngine::own);
  const Tensor ours = copy_of(trial.result()), our_lse = copy_of(trial.lse);
  fill_with_nan(trial.result());
  if (trial.is_forward()) fill_with_nan(trial.lse);
  const double cudnn = trial.seconds(AttentionEngine::cudnn);
  use_attention_engines(before, device);
  times.problem = device_kernels().cudnn_problem(kind, texts, device);  // it may have refused
  if (!times.problem.empty()) return times;
  const double apart = difference(trial.result(), ours);
  const double lse_apart = difference(trial.lse, our_lse);
  if (apart <= kAgreement && lse_apart <= kStatisticsAgree)
    times.cudnn = cudnn;
  else
    times.problem = fmt::format(
        "cuDNN's numbers are not those of our own kernel: {:.3g} of the largest apart, statistics "
        "{:.3g}",
        apart, lse_apart);
  return times;
}

}  // namespace amur
