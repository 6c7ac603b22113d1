// A few parameters of every kind with made-up gradients that any rank can compute.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "src/core/random.h"
#include "src/train/optimizer/optimizer.h"
#include "tests/unit/loss/dp_group.h"

namespace amur {

inline Parameter parameter(const std::string& name, ParamKind kind, std::vector<int64_t> sizes,
                           DType dtype, double scale) {
  Parameter p;
  p.name = name;
  p.kind = kind;
  for (int64_t s : sizes) p.axes.push_back({s, AxisRole::fixed});
  p.value = sizes.size() == 1 ? Tensor({sizes[0]}, dtype) : Tensor({sizes[0], sizes[1]}, dtype);
  const RandomKey key = RandomKey(3).fold(std::hash<std::string>()(name));
  for (int64_t i = 0; i < p.value.elements(); ++i) {
    const double x = scale * key.normal(static_cast<uint64_t>(i));
    if (dtype == DType::f64)
      p.value.as<double>()[i] = x;
    else
      p.value.as<float>()[i] = static_cast<float>(x);
  }
  return p;
}

inline constexpr int64_t kRows = 12, kColumns = 5;

inline ParameterSet model(DType dtype = DType::f64) {
  ParameterSet set;
  set.add(parameter("tokens", ParamKind::embedding, {kRows, kColumns}, dtype, 0.05));
  set.add(parameter("w", ParamKind::weight, {6, 7}, dtype, 0.1));
  set.add(parameter("b", ParamKind::bias, {7}, dtype, 0.01));
  set.add(parameter("gain", ParamKind::gain, {7}, dtype, 1));
  set.add(parameter("scale", ParamKind::scalar, {1}, dtype, 3));
  return set;
}

// Element i of the gradient of parameter p that sample n of step t brings.
inline double gradient(size_t p, int64_t i, int64_t step, int64_t sample) {
  return RandomKey(7)
      .fold(p)
      .fold(static_cast<uint64_t>(step))
      .fold(static_cast<uint64_t>(sample))
      .normal(static_cast<uint64_t>(i));
}

inline void add_to_sink(Parameter& p, int64_t i, double g) {
  if (p.sink.dtype() == DType::f64)
    p.sink.as<double>()[i] += p.sink_scale * g;
  else if (p.sink.dtype() == DType::bf16)
    p.sink.as<bf16>()[i] = bf16(static_cast<float>(p.sink.as<bf16>()[i]) +
                                static_cast<float>(p.sink_scale * g));
  else
    p.sink.as<float>()[i] += static_cast<float>(p.sink_scale * g);
}

inline std::vector<double> values(ConstTensorView t) {
  std::vector<double> v(static_cast<size_t>(t.elements()));
  dispatch_float(t.dtype(), "values", [&]<class T>() {
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<double>(t.as<T>()[i]);
  });
  return v;
}

// The largest difference of any bit-cast element between ranks is 0.
inline bool same_on_all_ranks(ConstTensorView t, Communicator& dp) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto* bytes = static_cast<const unsigned char*>(t.raw());
  for (size_t i = 0; i < t.bytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  const auto all = dp.gather(static_cast<int64_t>(hash));
  for (int64_t h : all)
    if (h != all[0]) return false;
  return true;
}

}  // namespace amur
