#include "tests/unit/comm/ways.h"

#include <dlfcn.h>

#include <cstdlib>

#include "comm/nccl_search.h"
#include "kernels/elementwise.h"
#include "tests/support/devices.h"
#include "tests/support/mpi_runtime.h"
#include "tests/support/nccl_stand_in.h"

namespace amur::test {
namespace {

// In the order of a stream of the stand-in, which is to be empty for that.
void cast_through_host(ConstTensorView from, TensorView to, Stream stream) {
  using Drain = decltype(nccl_stand_in_drain);
  reinterpret_cast<Drain*>(of_stand_in("nccl_stand_in_drain"))(stream.handle());
  Tensor staging, result(to.shape(), to.dtype());
  cast(on_host(from, staging), result);
  copy(to, result);
}

int real_gpus() {
  const GpuSearch search = find_gpus_of_amur();
  return search.usable() ? static_cast<int>(search.gpus.size()) : 0;
}

int launched(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

}  // namespace

void* of_stand_in(const char* name) {
  void* library = dlopen(AMUR_NCCL_STAND_IN, RTLD_NOW | RTLD_NOLOAD);
  return library ? dlsym(library, name) : nullptr;
}

std::vector<Way> ways() {
  std::vector<Way> all = {{"host", Device::cpu(), CommBackend::mpi, false}};
  if (launched("OMPI_COMM_WORLD_SIZE", 1) <= 4)  // it is slow
    all.push_back({"stand_in", Device::cuda(), CommBackend::nccl, true});
  if (const int gpus = real_gpus(); gpus > 0) {
    const Device own = Device::cuda(launched("OMPI_COMM_WORLD_LOCAL_RANK", 0) % gpus);
    all.push_back({"cuda_mpi", own, CommBackend::mpi, false});
    if (std::getenv("NCCL_HOSTID") || launched("OMPI_COMM_WORLD_LOCAL_SIZE", 1) <= gpus)
      all.push_back({"cuda_nccl", own, CommBackend::nccl, false});
  }
  return all;
}

std::string name_of_way(const ::testing::TestParamInfo<Way>& info) {
  return info.param.name;
}

std::unique_ptr<ProcessGrid> open_grid(const Way& way, GridShape shape, double limit_seconds) {
  GpuOptions options;
  options.device = way.device;
  options.limit_seconds = limit_seconds;
  options.cast = way.pretended ? cast_through_host : cast;
  if (way.pretended) {
    EXPECT_TRUE(find_gpus(AMUR_FAKE_GPU, AMUR_FAKE_DRIVER, false).usable());
  } else if (way.device != Device::cpu()) {
    EXPECT_GT(real_gpus(), 0);
  }
  if (way.backend == CommBackend::nccl)
    options.nccl_problem =
        find_nccl(way.pretended ? AMUR_NCCL_STAND_IN : beside_amur("libamur_nccl.so")).problem;
  return std::make_unique<ProcessGrid>(test_runtime(), shape, way.backend, options);
}

}  // namespace amur::test
