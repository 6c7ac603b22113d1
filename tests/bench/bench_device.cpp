#include "tests/bench/bench_device.h"

#include <filesystem>
#include <fstream>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/product.h"
#include "src/core/gpu.h"

namespace amur {

std::string take_option(std::vector<std::string>& args, const std::string& name,
                        const std::string& fallback) {
  const auto at = std::find(args.begin(), args.end(), name);
  if (at == args.end()) return fallback;
  if (at + 1 == args.end()) throw UsageError("{} needs a value", name);
  const std::string value = at[1];
  args.erase(at, at + 2);
  return value;
}

Device take_device(std::vector<std::string>& args) {
  const std::string name = take_option(args, "--device", "cpu");
  if (name == "cpu") return Device::cpu();
  if (name != "cuda") throw UsageError("--device is '{}': use cpu or cuda", name);
  // The module lies beside the program, the benchmarks do not.
  const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const GpuSearch search =
      find_gpus((here / "../../src/app/libamur_cuda.so").string(), "libcuda.so.1", false);
  if (!search.usable()) throw UsageError("--device cuda: {}; {}", search.problem, search.remedy);
  return Device::cuda();
}

std::string text_of_device(Device device) {
  if (device.kind == Device::Kind::cuda) {
    const GpuProbe probe = gpu_backend().probe();
    return probe.gpus.at(static_cast<size_t>(device.index)).text();
  }
  std::ifstream file("/proc/cpuinfo");
  const std::string key = "model name";
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key)) return line.substr(line.find(':') + 2);
  return "a processor without a name";
}

size_t peak_device_bytes(Device device) {
  return device == Device::cpu() ? memory_use(device).peak : gpu_backend().peak_bytes(device);
}

Tensor random_tensor(Shape shape, DType dtype, Device device) {
  constexpr int64_t kPeriod = 1'000'003;  // prime: no row of a matrix is the next one
  static const std::vector<float> some = [] {
    std::vector<float> drawn(kPeriod);
    for (size_t i = 0; i < drawn.size(); ++i)
      drawn[i] = static_cast<float>(RandomKey(1).uniform(i)) - 0.5f;
    return drawn;
  }();
  Tensor values(shape, DType::f32);
  for (int64_t i = 0; i < values.elements(); i += kPeriod)
    std::copy_n(some.begin(), std::min(kPeriod, values.elements() - i), values.as<float>() + i);
  Tensor there = on_device(std::move(values), device);
  if (dtype == DType::f32) return there;
  Tensor result(shape, dtype, device);
  cast(there, result);
  return result;
}

Floors measure_floors(Device device) {
  const bool gpu = device.kind == Device::Kind::cuda;
  Floors floors;
  floors.product_size = gpu ? 8192 : 1024;
  {
    const int64_t n = floors.product_size;
    const Tensor a = random_tensor({n, n}, DType::bf16, device);
    const Tensor b = random_tensor({n, n}, DType::bf16, device);
    Tensor c({n, n}, DType::bf16, device);
    // Chosen by measuring, as the products that are held against it.
    const Product product{
        .transpose_b = Transpose::yes, .m = n, .n = n, .k = n, .ab = a.dtype(), .c = c.dtype()};
    if (gpu) use_product_choices(measure_products(std::array{product}, {}, device));
    floors.flops_per_second = 2.0 * static_cast<double>(n * n * n) / seconds_of(device, [&] {
                                gemm(Transpose::no, Transpose::yes, 1, a, b, 0, c);
                              });
  }
  const int64_t bytes = gpu ? int64_t{1} << 30 : int64_t{64} << 20;
  const Tensor from = random_tensor({bytes / 4}, DType::f32, device);
  Tensor to({bytes / 4}, DType::f32, device);
  floors.bytes_per_second =
      2 * static_cast<double>(bytes) / seconds_of(device, [&] { copy(to.view(), from.view()); });
  return floors;
}

}  // namespace amur
