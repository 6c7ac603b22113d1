// What the kernel tests share: tensors from and to doubles, packed sequences, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/gemm.h"
#include "kernels/packed.h"
#include "src/core/random.h"
#include "src/core/tensor.h"
#include "tests/support/devices.h"

namespace amur::test {

using Doubles = std::vector<double>;

inline Doubles random_doubles(int64_t n, uint64_t seed, double width = 1) {
  const RandomKey key = RandomKey(seed).fold(static_cast<uint64_t>(RandomPurpose::probe));
  Doubles v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = width * key.normal(i);
  return v;
}

inline Tensor from_doubles(const Doubles& v, Shape shape, DType dtype,
                           Device device = Device::cpu()) {
  Tensor t(shape, dtype);
  dispatch_float(dtype, "from_doubles", [&]<class T>() {
    for (size_t i = 0; i < v.size(); ++i) {
      if constexpr (std::is_same_v<T, double>)
        t.as<T>()[i] = v[i];
      else
        t.as<T>()[i] = T(static_cast<float>(v[i]));
    }
  });
  return on_device(std::move(t), device);
}
inline Tensor random_tensor(Shape shape, DType dtype, uint64_t seed, double width = 1,
                            Device device = Device::cpu()) {
  return from_doubles(random_doubles(shape.elements(), seed, width), shape, dtype, device);
}
inline Tensor filled(Shape shape, DType dtype, double value, Device device = Device::cpu()) {
  return from_doubles(Doubles(static_cast<size_t>(shape.elements()), value), shape, dtype, device);
}

inline Doubles to_doubles(ConstTensorView t) {
  if (t.device() != Device::cpu()) return to_doubles(copy_on(Device::cpu(), t));
  Doubles v(static_cast<size_t>(t.elements()));
  dispatch_float(t.dtype(), "to_doubles", [&]<class T>() {
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<double>(t.as<T>()[i]);
  });
  return v;
}

template <class T>
Tensor integers(const std::vector<T>& v) {
  Tensor t({static_cast<int64_t>(v.size())}, dtype_of<T>);
  std::copy(v.begin(), v.end(), t.as<T>());
  return t;
}

// Roundings of stored values, for results of size 1.
inline double rounding(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-14;
    case DType::bf16:
      return 1.0 / 256;
    default:
      return 6e-8;
  }
}

// |actual - expected| <= tolerance * max(1, |expected|), everywhere.
inline void expect_near(const Doubles& actual, const Doubles& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], tolerance * std::max(1.0, std::abs(expected[i])))
        << what << " at " << i;
}
inline void expect_near(ConstTensorView actual, const Doubles& expected, double tolerance,
                        const std::string& what) {
  expect_near(to_doubles(actual), expected, tolerance, what);
}

inline bool same_bits(ConstTensorView a, ConstTensorView b) {
  if (a.device() != Device::cpu()) return same_bits(copy_on(Device::cpu(), a), b);
  if (b.device() != Device::cpu()) return same_bits(a, copy_on(Device::cpu(), b));
  return a.bytes() == b.bytes() &&
         (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.bytes()) == 0);
}

// The same values one element behind the beginning of an allocation: aligned to their type alone.
class OddlyPlaced {
 public:
  explicit OddlyPlaced(ConstTensorView like)
      : memory_({like.elements() + 1}, like.dtype(), like.device()),
        view_(memory_.view().slice(1, like.elements()).reshape(like.shape())) {
    copy(view_, like);
  }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }

 private:
  Tensor memory_;
  TensorView view_;
};

// Sequences of these lengths with dropout keys 1000, 1001, ...; `packed` lies on the device.
struct Sequences {
  std::vector<int32_t> starts{0};
  Tensor keys, cu_there, keys_there;
  PackedSequences packed;

  explicit Sequences(const std::vector<int32_t>& lengths, int64_t first_key = 1000,
                     Device device = Device::cpu()) {
    std::vector<int64_t> key_bits;
    for (int32_t n : lengths) {
      starts.push_back(starts.back() + n);
      key_bits.push_back(first_key++);
      packed.longest = std::max<int64_t>(packed.longest, n);
    }
    keys = integers(key_bits);
    cu_there = on_device(integers(starts), device);
    keys_there = on_device(integers(key_bits), device);
    packed.cu_seqlens = cu_there;
    packed.dropout_keys = keys_there;
  }
  int64_t tokens() const { return starts.back(); }
  size_t count() const { return starts.size() - 1; }
};

// d/dh of f(x + h direction) at 0 by central differences of fourth order.
inline double slope_along(const std::function<double(const Doubles&)>& f, const Doubles& x,
                          const Doubles& direction, double h = 1e-3) {
  const auto at = [&](double step) {
    Doubles moved = x;
    for (size_t i = 0; i < x.size(); ++i) moved[i] += step * direction[i];
    return f(moved);
  };
  return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
}
inline double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline std::vector<cpu::Isa> available_isas() {
  std::vector<cpu::Isa> isas;
  for (const cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512})
    if (isa <= cpu::instruction_set()) isas.push_back(isa);
  return isas;
}

// What computes: the CPU with one of its instruction sets, or the GPU of this machine.
struct Target {
  cpu::Isa isa = cpu::Isa::avx512;
  Device device;

  std::string name() const { return device == Device::cpu() ? cpu::name_of(isa) : "cuda"; }
};

inline std::vector<Target> cpu_targets() {
  std::vector<Target> targets;
  for (const cpu::Isa isa : available_isas()) targets.push_back({isa, Device::cpu()});
  return targets;
}
inline std::vector<Target> all_targets() {
  std::vector<Target> targets = cpu_targets();
  if (gpu_is_there()) targets.push_back({cpu::Isa::avx512, Device::cuda()});
  return targets;
}
// For what does not depend on the instruction set.
inline std::vector<Target> widest_targets() {
  std::vector<Target> targets = all_targets();
  std::erase_if(targets, [](const Target& t) {
    return t.device == Device::cpu() && t.isa != available_isas().back();
  });
  return targets;
}

// Every test of a kernel runs on every target of this machine with every dtype.
class KernelTest : public ::testing::TestWithParam<std::tuple<Target, DType>> {
 protected:
  void SetUp() override { cpu::limit_instruction_set(target().isa); }
  void TearDown() override {
    cpu::limit_instruction_set(cpu::Isa::avx512);
    set_compute_threads(1);
  }
  const Target& target() const { return std::get<0>(GetParam()); }
  Device device() const { return target().device; }
  DType dtype() const { return std::get<1>(GetParam()); }
  DType parameter() const { return parameter_dtype(dtype()); }

  // Tensors where the test computes.
  Tensor random_tensor(Shape shape, DType type, uint64_t seed, double width = 1) const {
    return test::random_tensor(shape, type, seed, width, device());
  }
  Tensor filled(Shape shape, DType type, double value) const {
    return test::filled(shape, type, value, device());
  }
  Tensor zeros(Shape shape, DType type) const { return Tensor::zeros(shape, type, device()); }
  Tensor empty(Shape shape, DType type) const { return Tensor(shape, type, device()); }
  template <class T>
  Tensor integers(const std::vector<T>& v) const {
    return on_device(test::integers(v), device());
  }

  // run() must leave the same bits with 1, 2, 3 and 7 threads (and on a GPU whenever it runs).
  void expect_same_for_any_threads(const std::function<std::vector<Tensor>()>& run) {
    set_compute_threads(1);
    const std::vector<Tensor> reference = run();
    for (int threads : {2, 3, 7}) {
      set_compute_threads(threads);
      const std::vector<Tensor> other = run();
      for (size_t i = 0; i < reference.size(); ++i)
        EXPECT_TRUE(same_bits(reference[i], other[i])) << "result " << i << ", threads " << threads;
    }
  }
};

inline std::string name_of_case(const ::testing::TestParamInfo<std::tuple<Target, DType>>& info) {
  return fmt::format("{}_{}", std::get<0>(info.param).name(),
                     amur::name_of(std::get<1>(info.param)));
}

}  // namespace amur::test

#define AMUR_KERNEL_CASES(Suite, targets, ...)                                          \
  INSTANTIATE_TEST_SUITE_P(                                                             \
      All, Suite,                                                                       \
      ::testing::Combine(::testing::ValuesIn(targets), ::testing::Values(__VA_ARGS__)), \
      ::amur::test::name_of_case)
#define AMUR_ALL_KERNEL_CASES(Suite)                                                             \
  AMUR_KERNEL_CASES(Suite, ::amur::test::all_targets(), ::amur::DType::f32, ::amur::DType::bf16, \
                    ::amur::DType::f64)
