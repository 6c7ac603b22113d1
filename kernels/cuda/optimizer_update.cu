// One pass over memory: a thread reads an element of everything, applies the rule of
// kernels/optimizer_rules.h and writes back.
#include "kernels/optimizer_update.h"

#include "kernels/cuda/pieces.cuh"

namespace amur::cuda {
namespace {

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

template <class T>
struct ListedUpdate : Pieces {
  T* theta;
  T* m;
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

template <class T>
__global__ void __launch_bounds__(kThreads)
    update_kernel(int64_t pieces, int64_t count, const ListedUpdate<T>* list) {
  for (int64_t p = blockIdx.x; p < pieces; p += gridDim.x) {
    const Piece piece = piece_of(list, count, p);
    const ListedUpdate<T>& u = list[piece.index];
    T *const theta = u.theta, *const m = u.m, *const v = u.v;
    const T* const g = u.g;
    const auto each = [&](const auto& f) {
      for (int64_t i = piece.first + threadIdx.x; i < piece.end; i += kThreads) f(i);
    };
    switch (u.kind) {
      case RuleKind::sign:
        each([&, rule = u.sign](int64_t i) { rule(m[i], theta[i]); });
        break;
      case RuleKind::bounded:
        each([&, rule = u.bounded](int64_t i) { rule(m[i], theta[i]); });
        break;
      case RuleKind::lion:
        each([&, rule = u.lion](int64_t i) { rule(g[i], m[i], theta[i]); });
        break;
      case RuleKind::adamw:
        each([&, rule = u.adamw](int64_t i) { rule(g[i], m[i], v[i], theta[i]); });
        break;
    }
  }
}

template <class T>
struct SetRule {
  ListedUpdate<T>& u;

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
template <class T>
__global__ void __launch_bounds__(kThreads)
    sign_by_row_kernel(const T* m, int64_t count, int64_t width, const int64_t* rows,
                       const double* rates, double rate, double rms_floor, T decay, T* theta) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t at = (rows ? rows[k] : k) * width;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      const double x = static_cast<double>(theta[at + j]);
      sum += x * x;
    }
    const double rms = sqrt(block_sum(sum) / static_cast<double>(width));
    const T step = static_cast<T>((rates ? rates[k] : rate) * (rms > rms_floor ? rms : rms_floor));
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      theta[at + j] = sign_step(theta[at + j], m[at + j], step, decay);
  }
}

template <class T>
void sign_by_row(ConstTensorView momentum, int64_t count, const int64_t* rows, const double* rates,
                 double rate, double rms_floor, double decay, TensorView theta,
                 cudaStream_t stream) {
  sign_by_row_kernel<<<blocks_for_each(count), kThreads, 0, stream>>>(
      momentum.as<T>(), count, theta.columns(), rows, rates, rate, rms_floor, static_cast<T>(decay),
      theta.as<T>());
  check_launch();
}

}  // namespace

void CudaBackend::update_parameters(std::span<const ParameterUpdate> updates, Stream stream) {
  const Device device = updates.front().theta.device();
  const cudaStream_t s = enter(device, stream);
  dispatch_f32_f64(updates.front().theta.dtype(), "update_parameters", [&]<class T>() {
    std::vector<ListedUpdate<T>> list;
    int64_t pieces = 0;
    for (const ParameterUpdate& update : updates) {
      ListedUpdate<T>& u = list.emplace_back();
      u.elements = update.theta.elements();
      u.first_piece = pieces;
      u.theta = update.theta.as<T>();
      u.m = update.momentum.as<T>();
      u.v = pointer_of<T>(update.second_moment);
      u.g = pointer_of<T>(update.gradient);
      std::visit(SetRule<T>{u}, update.step);
      pieces += pieces_of(u.elements);
    }
    if (pieces == 0) return;
    const Uploaded<ListedUpdate<T>> there(list, device, stream);
    update_kernel<T><<<blocks_for_each(pieces), kThreads, 0, s>>>(
        pieces, static_cast<int64_t>(list.size()), there.data());
    check_launch();
  });
}

void CudaBackend::sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor,
                                     double decay, TensorView theta, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  dispatch_f32_f64(theta.dtype(), "sign_update_by_row", [&]<class T>() {
    sign_by_row<T>(momentum, theta.rows(), nullptr, nullptr, rate, rms_floor, decay, theta, s);
  });
}

void CudaBackend::sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                                      std::span<const double> rates, double rms_floor, double decay,
                                      TensorView theta, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const Uploaded<int64_t> rows_there(rows, theta.device(), stream);
  const Uploaded<double> rates_there(rates, theta.device(), stream);
  dispatch_f32_f64(theta.dtype(), "sign_update_of_rows", [&]<class T>() {
    sign_by_row<T>(momentum, std::ssize(rows), rows_there.data(), rates_there.data(), 0, rms_floor,
                   decay, theta, s);
  });
}

}  // namespace amur::cuda
