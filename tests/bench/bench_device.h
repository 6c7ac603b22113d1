// What the benchmarks share: the device that they measure, how time is taken there, and its floors.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "src/core/random.h"
#include "src/core/tensor.h"
#include "src/train/stopwatch.h"

namespace amur {

// Takes `--NAME VALUE` out of the arguments; `fallback` where it is not there.
std::string take_option(std::vector<std::string>& args, const std::string& name,
                        const std::string& fallback);

// The device of `--device cpu|cuda`, which is taken out of the arguments. UsageError that says why
// where no GPU can be used.
Device take_device(std::vector<std::string>& args);

// "NVIDIA H200 (sm_90, 139.8 GiB)", or the processor's name.
std::string text_of_device(Device device);

// The most that this process ever had of the device's memory, work space of operations included.
size_t peak_device_bytes(Device device);

// Evenly spread over [-0.5, 0.5). Large tensors repeat the values of the first million elements.
Tensor random_tensor(Shape shape, DType dtype, Device device);

// Seconds of one call: the median of five series of calls, each of about 50 ms, of which the
// device is waited for once. A first call is not counted.
template <class F>
double seconds_of(Device device, const F& f) {
  const Stream stream(device);
  const auto series = [&](int calls) {
    stream.synchronize();
    Stopwatch watch;
    for (int i = 0; i < calls; ++i) f();
    stream.synchronize();
    return watch.elapsed();
  };
  series(1);
  const int calls = static_cast<int>(std::clamp(0.05 / series(1), 1.0, 1000.0));
  std::array<double, 5> times;
  for (double& time : times) time = series(calls) / calls;
  std::sort(times.begin(), times.end());
  return times[2];
}

// What no step and no kernel can beat, by the way that they take themselves: a product of two
// square bf16 matrices through `gemm`, and a copy, bytes read and written.
struct Floors {
  int64_t product_size = 0;
  double flops_per_second = 0, bytes_per_second = 0;
};
// On a GPU what was chosen for other products is forgotten.
Floors measure_floors(Device device);

}  // namespace amur
