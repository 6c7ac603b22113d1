// One pass over memory: a thread reads 16 bytes of weights and what belongs to them, applies the
// rule of kernels/optimizer_rules.h and writes back; single elements where addresses do not allow
// it.
#include "kernels/optimizer_update.h"

#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/pieces.cuh"
#include "kernels/dropout_math.h"

namespace amur::cuda {
namespace {

// Neighbours in a tensor of state, as what they are computed in.
template <int count, class M, class T = AccumulateType<M>>
__device__ Pack<T, count> get_pack(const M* from) {
  const auto pack = load_pack<count>(from);
  Pack<T, count> values;
  for (int k = 0; k < count; ++k) values.v[k] = computed(pack.v[k]);
  return values;
}

// A tensor of weights; f32 and f64 are not rounded.
template <class W>
class Weights {
 public:
  using T = AccumulateType<W>;

  Weights() = default;
  Weights(TensorView theta, const StochasticRounding& rounding)
      : theta_(theta.as<W>()),
        rounding_(rounding),
        one_run_(rounding.index.run >= theta.elements()) {}

  W* data() const { return theta_; }
  // Whether each pack has the lanes of one Philox block.
  bool noise_by_packs() const {
    const GlobalIndex& index = rounding_.index;
    const auto whole = [](int64_t n) { return n % kPack<W> == 0; };
    return !std::is_same_v<W, bf16> ||
           (whole(index.first) && (one_run_ || (whole(index.run) && whole(index.distance))));
  }
  template <int count>
  __device__ Pack<T, count> get(int64_t i) const {
    return get_pack<count>(theta_ + i);
  }
  template <int count>
  __device__ void set(int64_t i, const Pack<T, count>& values) const {
    Pack<W, count> pack;
    if constexpr (!std::is_same_v<W, bf16>) {
      for (int k = 0; k < count; ++k) pack.v[k] = values.v[k];
    } else if constexpr (count == 1) {
      pack.v[0] = round_stochastic(values.v[0], dropout_lane(rounding_.key, 0, place(i)));
    } else {
      const Philox p = philox(rounding_.key, 0, place(i) / count);
      for (int k = 0; k < count; ++k)
        pack.v[k] = round_stochastic(values.v[k], (p.v[k / 2] >> (16 * (k % 2))) & 0xffffu);
    }
    store_pack(theta_ + i, pack);
  }

 private:
  __device__ uint64_t place(int64_t i) const {
    return static_cast<uint64_t>(one_run_ ? rounding_.index.first + i : rounding_.index.of(i));
  }

  W* theta_ = nullptr;
  StochasticRounding rounding_;
  bool one_run_ = true;  // divisions are dear
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
  bool packs;  // all of them can be taken so
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
    const auto over = [&]<int n>(int64_t first, int64_t end, const auto& f) {
#pragma unroll 1
      for (int64_t i = first + threadIdx.x * n; i < end; i += kThreads * n) {
        Pack<T, n> theta = weights.template get<n>(i);
        f.template operator()<n>(i, theta);
        weights.set(i, theta);
      }
    };
    // f(i, theta) for packs of weights, and for single ones at the end.
    const auto each = [&](const auto& f) {
      const int64_t single = u.packs ? piece.end - piece.end % kPack<W> : piece.first;
      over.template operator()<kPack<W>>(piece.first, single, f);
      over.template operator()<1>(single, piece.end, f);
    };
    if (u.kind == RuleKind::sign) {
      each([&, rule = u.sign]<int n>(int64_t i, Pack<T, n>& theta) {
        const auto mean = get_pack<n>(m + i);
        for (int k = 0; k < n; ++k) rule(mean.v[k], theta.v[k]);
      });
      continue;
    }
    // The other rules keep what they compute with.
    if constexpr (std::is_same_v<M, T>) {
      switch (u.kind) {
        case RuleKind::sign:
          break;
        case RuleKind::bounded:
          each([&, rule = u.bounded]<int n>(int64_t i, Pack<T, n>& theta) {
            const auto mean = load_pack<n>(m + i);
            for (int k = 0; k < n; ++k) rule(mean.v[k], theta.v[k]);
          });
          break;
        case RuleKind::lion:
          each([&, rule = u.lion]<int n>(int64_t i, Pack<T, n>& theta) {
            const auto gradient = load_pack<n>(g + i);
            auto mean = load_pack<n>(m + i);
            for (int k = 0; k < n; ++k) rule(gradient.v[k], mean.v[k], theta.v[k]);
            store_pack(m + i, mean);
          });
          break;
        case RuleKind::adamw:
          each([&, rule = u.adamw]<int n>(int64_t i, Pack<T, n>& theta) {
            const auto gradient = load_pack<n>(g + i);
            auto mean = load_pack<n>(m + i), square = load_pack<n>(v + i);
            for (int k = 0; k < n; ++k) rule(gradient.v[k], mean.v[k], square.v[k], theta.v[k]);
            store_pack(m + i, mean);
            store_pack(v + i, square);
          });
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

struct RowStep {
  int64_t row;
  double rate;
};

// A warp takes row after row: its RMS in double, then its step, for which the row is still in the
// cache. `steps` is null where it is all rows at one rate.
template <class W, class M, int n, class T = AccumulateType<W>>
__global__ void __launch_bounds__(kThreads)
    sign_by_row_kernel(const M* m, int64_t count, int64_t width, const RowStep* steps, double rate,
                       double rms_floor, T decay, Weights<W> weights) {
  for (int64_t k = first_row(); k < count; k += row_stride()) {
    const auto [row, rate_of_row] = steps ? steps[k] : RowStep{k, rate};
    const int64_t first = row * width + lane_of_warp() * n, end = (row + 1) * width;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = first; i < end; i += kLanes * n) {
      const Pack<T, n> theta = weights.template get<n>(i);
      for (int j = 0; j < n; ++j) {
        const double x = static_cast<double>(theta.v[j]);
        sum += x * x;
      }
    }
    const double rms = sqrt(warp_sum(sum) / static_cast<double>(width));
    const T step = static_cast<T>(rate_of_row * (rms > rms_floor ? rms : rms_floor));
#pragma unroll 1
    for (int64_t i = first; i < end; i += kLanes * n) {
      Pack<T, n> theta = weights.template get<n>(i);
      const auto mean = get_pack<n>(m + i);
      for (int j = 0; j < n; ++j) theta.v[j] = sign_step(theta.v[j], mean.v[j], step, decay);
      weights.set(i, theta);
    }
  }
}

void sign_by_row(ConstTensorView momentum, int64_t count, const RowStep* steps, double rate,
                 double rms_floor, double decay, TensorView theta,
                 const StochasticRounding& rounding, cudaStream_t stream) {
  dispatch_state(theta.dtype(), momentum.dtype(), "sign_by_row", [&]<class W, class M>() {
    const Weights<W> weights(theta, rounding);
    const auto launch = [&]<int n>() {
      sign_by_row_kernel<W, M, n><<<blocks_for_rows(count), kThreads, 0, stream>>>(
          momentum.as<M>(), count, theta.columns(), steps, rate, rms_floor,
          static_cast<AccumulateType<W>>(decay), weights);
    };
    if (weights.noise_by_packs())
      with_packs<W>(theta.columns(), launch, weights.data(), momentum.as<M>());
    else
      launch.template operator()<1>();
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
    u.weights = Weights<W>(update.theta, update.rounding);
    u.m = update.momentum.as<M>();
    u.v = pointer_of<T>(update.second_moment);
    u.g = pointer_of<T>(update.gradient);
    u.packs = u.weights.noise_by_packs() && packs_at<kPack<W>>(u.weights.data(), u.m, u.v, u.g);
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
  sign_by_row(momentum, theta.rows(), nullptr, rate, rms_floor, decay, theta, rounding, s);
}

void CudaBackend::sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                                      std::span<const double> rates, double rms_floor, double decay,
                                      TensorView theta, const StochasticRounding& rounding,
                                      Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  std::vector<RowStep> steps(rows.size());
  for (size_t k = 0; k < rows.size(); ++k) steps[k] = {rows[k], rates[k]};
  const Uploaded<RowStep> there(steps, theta.device(), stream);
  sign_by_row(momentum, std::ssize(rows), there.data(), 0, rms_floor, decay, theta, rounding, s);
}

}  // namespace amur::cuda
