// Fused optimizer updates; results do not depend on the number of threads. Rates and decays are
// those of kernels/optimizer_rules.h.
//
// Weights and momenta are f32 or f64, computed as such. Weights may be bf16 beside momenta in f32,
// or, for sign steps, in bf16: the step is then computed in f32 and rounded stochastically.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <variant>

#include "kernels/optimizer_rules.h"
#include "src/core/tensor.h"

namespace amur {

// theta -= rate (sign(m) + decay theta)
struct SignStep {
  double rate, decay;
};
// theta -= rate clamp(m / threshold, -1, 1)
struct BoundedStep {
  double rate, threshold;
};
struct LionStep {
  double rate, decay, beta1, beta2;

  template <class T>
  LionRule<T> rule() const {
    return {static_cast<T>(rate), static_cast<T>(decay), static_cast<T>(beta1),
            static_cast<T>(beta2)};
  }
};
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

// All tensors have the shape of theta and those besides it one dtype; those that the step does not
// have are undefined.
struct ParameterUpdate {
  std::variant<SignStep, BoundedStep, LionStep, AdamWStep> step;
  TensorView theta;
  TensorView momentum;               // AdamW: the first moment
  ConstTensorView gradient = {};     // Lion and AdamW; the others read their momentum
  TensorView second_moment = {};     // AdamW
  StochasticRounding rounding = {};  // of bf16 weights
};
// The tensors of different updates are different ones on one device: a GPU makes all those of one
// dtype in one launch.
void update_parameters(std::span<const ParameterUpdate> updates, Stream stream = {});

// A sign step row by row, with the step size of row r = rate max(RMS(theta[r, :]), rms_floor).
void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor, double decay,
                        TensorView theta, const StochasticRounding& rounding = {},
                        Stream stream = {});
// The same for the rows rows[k] only, distinct, at rates[k].
void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                         std::span<const double> rates, double rms_floor, double decay,
                         TensorView theta, const StochasticRounding& rounding = {},
                         Stream stream = {});

// Calls f.template operator()<W, M>() for weights and momenta of these dtypes; `op` names the
// caller.
template <class F>
decltype(auto) dispatch_state(DType weights, DType momenta, const char* op, F&& f) {
  if (weights == DType::bf16 && momenta == DType::bf16)
    return std::forward<F>(f).template operator()<bf16, bf16>();
  if (weights == DType::bf16 && momenta == DType::f32)
    return std::forward<F>(f).template operator()<bf16, float>();
  AMUR_CHECK(weights == momenta, "{}: weights in {}, momenta in {}", op, name_of(weights),
             name_of(momenta));
  return dispatch_f32_f64(
      weights, op, [&]<class T>() { return std::forward<F>(f).template operator()<T, T>(); });
}

}  // namespace amur
