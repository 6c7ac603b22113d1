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

void sign_update(ConstTensorView momentum, double rate, double decay, TensorView theta,
                 Stream stream) {
  require_device("sign_update", {theta, momentum});
  require_like("sign_update", "momentum", momentum, theta);
  if (theta.elements() == 0) return;
  if (on_gpu(theta)) return device_kernels().sign_update(momentum, rate, decay, theta, stream);
  dispatch_f32_f64(theta.dtype(), "sign_update", [&]<class T>() {
    const auto& kernels = cpu::kernels<OptimizerKernels<T>>();
    parallel_for(theta.elements(), kGrain, [&](int64_t first, int64_t last) {
      kernels.sign(momentum.as<T>() + first, last - first, static_cast<T>(rate),
                   static_cast<T>(decay), theta.as<T>() + first);
    });
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

void bounded_update(ConstTensorView momentum, double rate, double threshold, TensorView theta,
                    Stream stream) {
  require_device("bounded_update", {theta, momentum});
  require_like("bounded_update", "momentum", momentum, theta);
  AMUR_CHECK(threshold > 0, "threshold {}", threshold);
  if (theta.elements() == 0) return;
  if (on_gpu(theta))
    return device_kernels().bounded_update(momentum, rate, threshold, theta, stream);
  dispatch_f32_f64(theta.dtype(), "bounded_update", [&]<class T>() {
    cpu::kernels<OptimizerKernels<T>>().bounded(momentum.as<T>(), theta.elements(),
                                                static_cast<T>(rate), static_cast<T>(threshold),
                                                theta.as<T>());
  });
}

void lion_update(ConstTensorView gradient, const LionStep& step, TensorView momentum,
                 TensorView theta, Stream stream) {
  require_device("lion_update", {theta, gradient, momentum});
  require_like("lion_update", "gradient", gradient, theta);
  require_like("lion_update", "momentum", momentum, theta);
  if (theta.elements() == 0) return;
  if (on_gpu(theta)) return device_kernels().lion_update(gradient, step, momentum, theta, stream);
  dispatch_f32_f64(theta.dtype(), "lion_update", [&]<class T>() {
    const auto& kernels = cpu::kernels<OptimizerKernels<T>>();
    const LionRule<T> rule = step.rule<T>();
    parallel_for(theta.elements(), kGrain, [&](int64_t first, int64_t last) {
      kernels.lion(rule, gradient.as<T>() + first, last - first, momentum.as<T>() + first,
                   theta.as<T>() + first);
    });
  });
}

void adamw_update(ConstTensorView gradient, const AdamWStep& step, TensorView first_moment,
                  TensorView second_moment, TensorView theta, Stream stream) {
  require_device("adamw_update", {theta, gradient, first_moment, second_moment});
  require_like("adamw_update", "gradient", gradient, theta);
  require_like("adamw_update", "first_moment", first_moment, theta);
  require_like("adamw_update", "second_moment", second_moment, theta);
  AMUR_CHECK(step.count >= 1, "update {}", step.count);
  if (theta.elements() == 0) return;
  if (on_gpu(theta))
    return device_kernels().adamw_update(gradient, step, first_moment, second_moment, theta,
                                         stream);
  dispatch_f32_f64(theta.dtype(), "adamw_update", [&]<class T>() {
    const auto& kernels = cpu::kernels<OptimizerKernels<T>>();
    const AdamWRule<T> rule = step.rule<T>();
    parallel_for(theta.elements(), kGrain, [&](int64_t first, int64_t last) {
      kernels.adamw(rule, gradient.as<T>() + first, last - first, first_moment.as<T>() + first,
                    second_moment.as<T>() + first, theta.as<T>() + first);
    });
  });
}

}  // namespace amur
