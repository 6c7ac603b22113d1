// Element types of tensors, and dispatch from the run-time DType to a C++ type.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "src/core/error.h"
#include "src/core/host_device.h"

namespace amur {

enum class DType : uint8_t { f32, bf16, f64, i32, i64, u8 };

// The upper half of an IEEE float, rounded to nearest even. Storage only: compute in float.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  AMUR_HOST_DEVICE explicit bf16(float value) {
#if defined(__CUDA_ARCH__)  // the instruction: the same bits, but for those of a NaN
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    uint32_t b = std::bit_cast<uint32_t>(value);
    if ((b & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((b >> 16) | 0x40u);  // keep NaN a NaN
    } else {
      bits = static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
    }
#endif
  }
  AMUR_HOST_DEVICE explicit operator float() const {
    return std::bit_cast<float>(uint32_t{bits} << 16);
  }
  AMUR_HOST_DEVICE explicit operator double() const { return static_cast<float>(*this); }
};

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::f32: return 4;
    case DType::bf16: return 2;
    case DType::f64: return 8;
    case DType::i32: return 4;
    case DType::i64: return 8;
    case DType::u8: return 1;
  }
  return 0;
}

constexpr const char* name_of(DType t) {
  switch (t) {
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::f64: return "f64";
    case DType::i32: return "i32";
    case DType::i64: return "i64";
    case DType::u8: return "u8";
  }
  return "?";
}

template <class T> struct dtype_of_t;
template <> struct dtype_of_t<float> { static constexpr DType value = DType::f32; };
template <> struct dtype_of_t<bf16> { static constexpr DType value = DType::bf16; };
template <> struct dtype_of_t<double> { static constexpr DType value = DType::f64; };
template <> struct dtype_of_t<int32_t> { static constexpr DType value = DType::i32; };
template <> struct dtype_of_t<int64_t> { static constexpr DType value = DType::i64; };
template <> struct dtype_of_t<uint8_t> { static constexpr DType value = DType::u8; };
template <class T> constexpr DType dtype_of = dtype_of_t<T>::value;

// Arithmetic on T happens in AccumulateType<T>: float for bf16 and float, double for double.
template <class T> struct accumulate_type { using type = float; };
template <> struct accumulate_type<double> { using type = double; };
template <class T> using AccumulateType = typename accumulate_type<T>::type;

// Small parameters, gradients and statistics beside activations or weights of dtype `t`: f32, but
// f64 for proofs.
constexpr DType parameter_dtype(DType t) {
  return t == DType::f64 ? DType::f64 : DType::f32;
}

// Calls f.template operator()<T>() for the floating type behind `t`; `op` names the caller.
template <class F>
decltype(auto) dispatch_float(DType t, const char* op, F&& f) {
  switch (t) {
    case DType::f32: return std::forward<F>(f).template operator()<float>();
    case DType::bf16: return std::forward<F>(f).template operator()<bf16>();
    case DType::f64: return std::forward<F>(f).template operator()<double>();
    default: throw InternalError(fmt::format("{}: {} is not a floating type", op, name_of(t)));
  }
}
// The same without bf16, for parameters, gradients and optimizer state.
template <class F>
decltype(auto) dispatch_f32_f64(DType t, const char* op, F&& f) {
  switch (t) {
    case DType::f32: return std::forward<F>(f).template operator()<float>();
    case DType::f64: return std::forward<F>(f).template operator()<double>();
    default: throw InternalError(fmt::format("{}: {} is neither f32 nor f64", op, name_of(t)));
  }
}

}  // namespace amur
