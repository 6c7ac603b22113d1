#include "kernels/optimizer_update.h"

#include "kernels/check.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/optimizer_update.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device_kernels.h"

namespace amur {
namespace {

using cpu::OptimizerKernels;
using cpu::parallel_for;
using cpu::SignKernels;

constexpr int64_t kGrain = 16384;  // elements

void require_like(const char* op, const char* name, ConstTensorView tensor, ConstTensorView like) {
  require_dtype(op, name, tensor, like.dtype());
  require_shape(op, name, tensor, like.shape());
}

void require_momentum(const char* op, ConstTensorView momentum, ConstTensorView theta) {
  require_shape(op, "momentum", momentum, theta.shape());
  dispatch_state(theta.dtype(), momentum.dtype(), op, []<class W, class M>() {});
}

template <class W>
struct OnCpu {
  using T = AccumulateType<W>;
  const ParameterUpdate& u;
  const OptimizerKernels<W>& kernels = cpu::kernels<OptimizerKernels<W>>();

  template <class F>
  void over_elements(const F& f) const {
    parallel_for(u.theta.elements(), kGrain,
                 [&](int64_t first, int64_t last) { f(first, last - first); });
  }
  cpu::Weights<W> weights(int64_t first) const {
    return {u.theta.as<W>() + first, first, u.rounding};
  }
  void operator()(const SignStep& step) const {
    dispatch_state(u.theta.dtype(), u.momentum.dtype(), "sign step", [&]<class V, class M>() {
      if constexpr (std::is_same_v<V, W>) {
        const auto& sign_kernels = cpu::kernels<SignKernels<W, M>>();
        over_elements([&](int64_t i, int64_t n) {
          sign_kernels.sign(u.momentum.as<M>() + i, n, static_cast<T>(step.rate),
                            static_cast<T>(step.decay), weights(i));
        });
      }
    });
  }
  void operator()(const BoundedStep& step) const {
    kernels.bounded(u.momentum.as<T>(), u.theta.elements(), static_cast<T>(step.rate),
                    static_cast<T>(step.threshold), weights(0));
  }
  void operator()(const LionStep& step) const {
    const LionRule<T> rule = step.rule<T>();
    over_elements([&](int64_t i, int64_t n) {
      kernels.lion(rule, u.gradient.as<T>() + i, n, u.momentum.as<T>() + i, weights(i));
    });
  }
  void operator()(const AdamWStep& step) const {
    const AdamWRule<T> rule = step.rule<T>();
    over_elements([&](int64_t i, int64_t n) {
      kernels.adamw(rule, u.gradient.as<T>() + i, n, u.momentum.as<T>() + i,
                    u.second_moment.as<T>() + i, weights(i));
    });
  }
};

void check_update(const ParameterUpdate& u, ConstTensorView first) {
  const char* op = "update_parameters";
  require_device(op, {first, u.theta, u.momentum, u.gradient, u.second_moment});
  require_momentum(op, u.momentum, u.theta);
  if (!std::holds_alternative<SignStep>(u.step))
    require_dtype(op, "momentum", u.momentum, parameter_dtype(u.theta.dtype()));
  const auto* bounded = std::get_if<BoundedStep>(&u.step);
  AMUR_CHECK(!bounded || bounded->threshold > 0, "threshold {}", bounded->threshold);
  const auto* adamw = std::get_if<AdamWStep>(&u.step);
  AMUR_CHECK(!adamw || adamw->count >= 1, "update {}", adamw->count);
  if (adamw || std::holds_alternative<LionStep>(u.step))
    require_like(op, "gradient", u.gradient, u.momentum);
  if (adamw) require_like(op, "second_moment", u.second_moment, u.momentum);
}

}  // namespace

void update_parameters(std::span<const ParameterUpdate> updates, Stream stream) {
  if (updates.empty()) return;
  const ConstTensorView first = updates.front().theta;
  for (const ParameterUpdate& u : updates) check_update(u, first);
  if (on_gpu(first)) return device_kernels().update_parameters(updates, stream);
  for (const ParameterUpdate& u : updates)
    if (u.theta.elements() > 0)
      dispatch_float(u.theta.dtype(), "update_parameters",
                     [&]<class W>() { std::visit(OnCpu<W>{u}, u.step); });
}

void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor, double decay,
                        TensorView theta, const StochasticRounding& rounding, Stream stream) {
  const char* op = "sign_update_by_row";
  require_device(op, {theta, momentum});
  require_momentum(op, momentum, theta);
  const int64_t n = theta.columns();
  if (theta.elements() == 0) return;
  if (on_gpu(theta))
    return device_kernels().sign_update_by_row(momentum, rate, rms_floor, decay, theta, rounding,
                                               stream);
  dispatch_state(theta.dtype(), momentum.dtype(), op, [&]<class W, class M>() {
    const auto& kernels = cpu::kernels<SignKernels<W, M>>();
    parallel_for(theta.rows(), kGrain / (n + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r)
        kernels.sign_relative(momentum.as<M>() + r * n, n, rate, rms_floor,
                              static_cast<AccumulateType<W>>(decay),
                              {theta.as<W>() + r * n, r * n, rounding});
    });
  });
}

void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                         std::span<const double> rates, double rms_floor, double decay,
                         TensorView theta, const StochasticRounding& rounding, Stream stream) {
  const char* op = "sign_update_of_rows";
  require_device(op, {theta, momentum});
  require_momentum(op, momentum, theta);
  AMUR_CHECK(rows.size() == rates.size(), "{} rows, {} rates", rows.size(), rates.size());
  const int64_t n = theta.columns();
  for (int64_t r : rows) AMUR_CHECK(r >= 0 && r < theta.rows(), "row {} of {}", r, theta.rows());
  if (theta.elements() == 0 || rows.empty()) return;
  if (on_gpu(theta))
    return device_kernels().sign_update_of_rows(momentum, rows, rates, rms_floor, decay, theta,
                                                rounding, stream);
  dispatch_state(theta.dtype(), momentum.dtype(), op, [&]<class W, class M>() {
    const auto& kernels = cpu::kernels<SignKernels<W, M>>();
    parallel_for(std::ssize(rows), kGrain / (n + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t at = rows[static_cast<size_t>(k)] * n;
        kernels.sign_relative(momentum.as<M>() + at, n, rates[static_cast<size_t>(k)], rms_floor,
                              static_cast<AccumulateType<W>>(decay),
                              {theta.as<W>() + at, at, rounding});
      }
    });
  });
}

}  // namespace amur
