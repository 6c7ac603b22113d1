// Fused optimizer updates. All tensors of a call share shape and dtype (f32 or f64); results do not
// depend on the number of threads. Rates and decays are those of kernels/optimizer_rules.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "kernels/optimizer_rules.h"
#include "src/core/tensor.h"

namespace amur {

// theta -= rate (sign(m) + decay theta)
void sign_update(ConstTensorView momentum, double rate, double decay, TensorView theta,
                 Stream stream = {});
// The same row by row, with the step size of row r = rate max(RMS(theta[r, :]), rms_floor).
void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor, double decay,
                        TensorView theta, Stream stream = {});
// The same for the rows rows[k] only, distinct, at rates[k].
void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                         std::span<const double> rates, double rms_floor, double decay,
                         TensorView theta, Stream stream = {});
// theta -= rate clamp(m / threshold, -1, 1)
void bounded_update(ConstTensorView momentum, double rate, double threshold, TensorView theta,
                    Stream stream = {});

struct LionStep {
  double rate, decay, beta1, beta2;

  template <class T>
  LionRule<T> rule() const {
    return {static_cast<T>(rate), static_cast<T>(decay), static_cast<T>(beta1),
            static_cast<T>(beta2)};
  }
};
void lion_update(ConstTensorView gradient, const LionStep& step, TensorView momentum,
                 TensorView theta, Stream stream = {});

struct AdamWStep {
  double rate, decay, beta1, beta2, epsilon;
  int64_t count;  // updates including this one, from 1

  template <class T>
  AdamWRule<T> rule() const {
    const double t = static_cast<double>(count);
    return {static_cast<T>(rate),
            static_cast<T>(decay),
            static_cast<T>(beta1),
            static_cast<T>(beta2),
            static_cast<T>(epsilon),
            static_cast<T>(1 - std::pow(beta1, t)),
            static_cast<T>(1 - std::pow(beta2, t))};
  }
};
void adamw_update(ConstTensorView gradient, const AdamWStep& step, TensorView first_moment,
                  TensorView second_moment, TensorView theta, Stream stream = {});

}  // namespace amur
