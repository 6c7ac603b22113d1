// One pass over memory: a thread reads an element of everything, applies the rule of
// kernels/optimizer_rules.h and writes back.
#include "kernels/optimizer_update.h"

#include "kernels/cuda/pieces.cuh"
#include "kernels/dropout_math.h"

namespace amur::cuda {
namespace {

// A tensor of weights; f32 and f64 are not rounded.
template <class W>
struct Weights {
  W* theta;
  StochasticRounding rounding;

  __device__ AccumulateType<W> get(int64_t i) const { return computed(theta[i]); }
  __device__ void set(int64_t i, AccumulateType<W> value) const {
    if constexpr (std::is_same_v<W, bf16>) {
      const auto element = static_cast<uint64_t>(rounding.index.of(i));
      theta[i] = round_stochastic(value, dropout_lane(rounding.key, 0, element));
    } else {
      theta[i] = value;
    }
  }
};

// Steps along the momentum, as kernels/optimizer_rules.h has them.
template <class T>
struct SignRule {
  T rate, decay;
  __device__ void operator()(T m, T& theta) const { theta = sign_step(theta, m, rate, decay); }
};
template <class T>
struct BoundedRule {
  T rate, threshold;
  __device__ void operator()(T m, T& theta) const {
    theta = bounded_step(theta, m, rate, threshold);
  }
};

enum class RuleKind : int { sign, bounded, lion, adamw };

// W: weights, M: momenta.
template <class W, class M, class T = AccumulateType<W>>
struct ListedUpdate : Pieces {
  Weights<W> weights;
  M* m;
  T* v;        // AdamW, else null
  const T* g;  // Lion and AdamW, else null
  RuleKind kind;
  union {
    SignRule<T> sign;
    BoundedRule<T> bounded;
    LionRule<T> lion;
    AdamWRule<T> adamw;
  };
};

template <class W, class M, class T = AccumulateType<W>>
__global__ void __launch_bounds__(kThreads)
    update_kernel(int64_t pieces, int64_t count, const ListedUpdate<W, M>* list) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, count, p);
    const ListedUpdate<W, M>& u = list[piece.index];
    const Weights<W> weights = u.weights;
    M* const m = u.m;
    T* const v = u.v;
    const T* const g = u.g;
    const auto each = [&](const auto& f) {
      for (int64_t i = piece.first + threadIdx.x; i < piece.end; i += kThreads) {
        T theta = weights.get(i);
        f(i, theta);
        weights.set(i, theta);
      }
    };
    if (u.kind == RuleKind::sign) {
      each([&, rule = u.sign](int64_t i, T& theta) { rule(computed(m[i]), theta); });
      continue;
    }
    // The other rules keep what they compute with.
    if constexpr (std::is_same_v<M, T>) {
      switch (u.kind) {
        case RuleKind::sign:
          break;
        case RuleKind::bounded:
          each([&, rule = u.bounded](int64_t i, T& theta) { rule(m[i], theta); });
          break;
        case RuleKind::lion:
          each([&, rule = u.lion](int64_t i, T& theta) { rule(g[i], m[i], theta); });
          break;
        case RuleKind::adamw:
          each([&, rule = u.adamw](int64_t i, T& theta) { rule(g[i], m[i], v[i], theta); });
          break;
      }
    }
  }
}

template <class W, class M, class T = AccumulateType<W>>
struct SetRule {
  ListedUpdate<W, M>& u;

  void operator()(const SignStep& step) const {
    u.kind = RuleKind::sign;
    u.sign = {static_cast<T>(step.rate), static_cast<T>(step.decay)};
  }
  void operator()(const BoundedStep& step) const {
    u.kind = RuleKind::bounded;
    u.bounded = {static_cast<T>(step.rate), static_cast<T>(step.threshold)};
  }
  void operator()(const LionStep& step) const {
    u.kind = RuleKind::lion;
    u.lion = step.rule<T>();
  }
  void operator()(const AdamWStep& step) const {
    u.kind = RuleKind::adamw;
    u.adamw = step.rule<T>();
  }
};

// A block takes row after row: its RMS in double, then its step. `rows` and `rates` are null where
// it is all rows at one rate.
template <class W, class M, class T = AccumulateType<W>>
__global__ void __launch_bounds__(kThreads)
    sign_by_row_kernel(const M* m, int64_t count, int64_t width, const int64_t* rows,
                       const double* rates, double rate, double rms_floor, T decay,
                       Weights<W> weights) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t at = (rows ? rows[k] : k) * width;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      const double x = static_cast<double>(weights.get(at + j));
      sum += x * x;
    }
    const double rms = sqrt(block_sum(sum) / static_cast<double>(width));
    const T step = static_cast<T>((rates ? rates[k] : rate) * (rms > rms_floor ? rms : rms_floor));
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      weights.set(at + j, sign_step(weights.get(at + j), computed(m[at + j]), step, decay));
  }
}

void sign_by_row(ConstTensorView momentum, int64_t count, const int64_t* rows, const double* rates,
                 double rate, double rms_floor, double decay, TensorView theta,
                 const StochasticRounding& rounding, cudaStream_t stream) {
  dispatch_state(theta.dtype(), momentum.dtype(), "sign_by_row", [&]<class W, class M>() {
    sign_by_row_kernel<W, M><<<blocks_for_each(count), kThreads, 0, stream>>>(
        momentum.as<M>(), count, theta.columns(), rows, rates, rate, rms_floor,
        static_cast<AccumulateType<W>>(decay), Weights<W>{theta.as<W>(), rounding});
  });
  check_launch();
}

// Those of the updates whose weights are W and whose momenta are M.
template <class W, class M>
void update_those_of(std::span<const ParameterUpdate> updates, Device device, Stream stream) {
  using T = AccumulateType<W>;
  std::vector<ListedUpdate<W, M>> list;
  int64_t pieces = 0;
  for (const ParameterUpdate& update : updates) {
    if (update.theta.dtype() != dtype_of<W> || update.momentum.dtype() != dtype_of<M>) continue;
    ListedUpdate<W, M>& u = list.emplace_back();
    u.elements = update.theta.elements();
    u.first_piece = pieces;
    u.weights = {update.theta.as<W>(), update.rounding};
    u.m = update.momentum.as<M>();
    u.v = pointer_of<T>(update.second_moment);
    u.g = pointer_of<T>(update.gradient);
    std::visit(SetRule<W, M>{u}, update.step);
    pieces += pieces_of(u.elements);
  }
  if (pieces == 0) return;
  const Uploaded<ListedUpdate<W, M>> there(list, device, stream);
  update_kernel<W, M><<<blocks_for_each(pieces), kThreads, 0, enter(device, stream)>>>(
      pieces, static_cast<int64_t>(list.size()), there.data());
  check_launch();
}

}  // namespace

void CudaBackend::update_parameters(std::span<const ParameterUpdate> updates, Stream stream) {
  const Device device = updates.front().theta.device();
  update_those_of<float, float>(updates, device, stream);
  update_those_of<bf16, float>(updates, device, stream);
  update_those_of<bf16, bf16>(updates, device, stream);
  update_those_of<double, double>(updates, device, stream);
}

void CudaBackend::sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor,
                                     double decay, TensorView theta,
                                     const StochasticRounding& rounding, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  sign_by_row(momentum, theta.rows(), nullptr, nullptr, rate, rms_floor, decay, theta, rounding, s);
}

void CudaBackend::sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                                      std::span<const double> rates, double rms_floor, double decay,
                                      TensorView theta, const StochasticRounding& rounding,
                                      Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const Uploaded<int64_t> rows_there(rows, theta.device(), stream);
  const Uploaded<double> rates_there(rates, theta.device(), stream);
  sign_by_row(momentum, std::ssize(rows), rows_there.data(), rates_there.data(), 0, rms_floor,
              decay, theta, rounding, s);
}

}  // namespace amur::cuda
