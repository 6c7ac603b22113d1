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

constexpr int64_t kGrain = 16384;  // elements

void require_like(const char* op, const char* name, ConstTensorView tensor, ConstTensorView theta) {
  require_dtype(op, name, tensor, theta.dtype());
  require_shape(op, name, tensor, theta.shape());
}

}  // namespace

namespace {

template <class T>
struct OnCpu {
  const ParameterUpdate& u;
  const OptimizerKernels<T>& kernels = cpu::kernels<OptimizerKernels<T>>();

  template <class F>
  void over_elements(const F& f) const {
    parallel_for(u.theta.elements(), kGrain,
                 [&](int64_t first, int64_t last) { f(first, last - first); });
  }
  void operator()(const SignStep& step) const {
    over_elements([&](int64_t i, int64_t n) {
      kernels.sign(u.momentum.as<T>() + i, n, static_cast<T>(step.rate), static_cast<T>(step.decay),
                   u.theta.as<T>() + i);
    });
  }
  void operator()(const BoundedStep& step) const {
    kernels.bounded(u.momentum.as<T>(), u.theta.elements(), static_cast<T>(step.rate),
                    static_cast<T>(step.threshold), u.theta.as<T>());
  }
  void operator()(const LionStep& step) const {
    const LionRule<T> rule = step.rule<T>();
    over_elements([&](int64_t i, int64_t n) {
      kernels.lion(rule, u.gradient.as<T>() + i, n, u.momentum.as<T>() + i, u.theta.as<T>() + i);
    });
  }
  void operator()(const AdamWStep& step) const {
    const AdamWRule<T> rule = step.rule<T>();
    over_elements([&](int64_t i, int64_t n) {
      kernels.adamw(rule, u.gradient.as<T>() + i, n, u.momentum.as<T>() + i,
                    u.second_moment.as<T>() + i, u.theta.as<T>() + i);
    });
  }
};

void check_update(const ParameterUpdate& u, ConstTensorView first) {
  const char* op = "update_parameters";
  require_device(op, {first, u.theta, u.momentum, u.gradient, u.second_moment});
  require_dtype(op, "theta", u.theta, first.dtype());
  require_like(op, "momentum", u.momentum, u.theta);
  const auto* bounded = std::get_if<BoundedStep>(&u.step);
  AMUR_CHECK(!bounded || bounded->threshold > 0, "threshold {}", bounded->threshold);
  const auto* adamw = std::get_if<AdamWStep>(&u.step);
  AMUR_CHECK(!adamw || adamw->count >= 1, "update {}", adamw->count);
  if (adamw || std::holds_alternative<LionStep>(u.step))
    require_like(op, "gradient", u.gradient, u.theta);
  if (adamw) require_like(op, "second_moment", u.second_moment, u.theta);
}

}  // namespace

void update_parameters(std::span<const ParameterUpdate> updates, Stream stream) {
  if (updates.empty()) return;
  const ConstTensorView first = updates.front().theta;
  for (const ParameterUpdate& u : updates) check_update(u, first);
  if (on_gpu(first)) return device_kernels().update_parameters(updates, stream);
  dispatch_f32_f64(first.dtype(), "update_parameters", [&]<class T>() {
    for (const ParameterUpdate& u : updates)
      if (u.theta.elements() > 0) std::visit(OnCpu<T>{u}, u.step);
  });
}

void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor, double decay,
                        TensorView theta, Stream stream) {
  require_device("sign_update_by_row", {theta, momentum});
  require_like("sign_update_by_row", "momentum", momentum, theta);
  const int64_t n = theta.columns();
  if (theta.elements() == 0) return;
  if (on_gpu(theta))
    return device_kernels().sign_update_by_row(momentum, rate, rms_floor, decay, theta, stream);
  dispatch_f32_f64(theta.dtype(), "sign_update_by_row", [&]<class T>() {
    const auto& kernels = cpu::kernels<OptimizerKernels<T>>();
    parallel_for(theta.rows(), kGrain / (n + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r)
        kernels.sign_relative(momentum.as<T>() + r * n, n, rate, rms_floor, static_cast<T>(decay),
                              theta.as<T>() + r * n);
    });
  });
}

void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                         std::span<const double> rates, double rms_floor, double decay,
                         TensorView theta, Stream stream) {
  require_device("sign_update_of_rows", {theta, momentum});
  require_like("sign_update_of_rows", "momentum", momentum, theta);
  AMUR_CHECK(rows.size() == rates.size(), "{} rows, {} rates", rows.size(), rates.size());
  const int64_t n = theta.columns();
  for (int64_t r : rows) AMUR_CHECK(r >= 0 && r < theta.rows(), "row {} of {}", r, theta.rows());
  if (theta.elements() == 0 || rows.empty()) return;
  if (on_gpu(theta))
    return device_kernels().sign_update_of_rows(momentum, rows, rates, rms_floor, decay, theta,
                                                stream);
  dispatch_f32_f64(theta.dtype(), "sign_update_of_rows", [&]<class T>() {
    const auto& kernels = cpu::kernels<OptimizerKernels<T>>();
    parallel_for(std::ssize(rows), kGrain / (n + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t at = rows[static_cast<size_t>(k)] * n;
        kernels.sign_relative(momentum.as<T>() + at, n, rates[static_cast<size_t>(k)], rms_floor,
                              static_cast<T>(decay), theta.as<T>() + at);
      }
    });
  });
}

}  // namespace amur
