#include "comm/nccl_search.h"

#include <atomic>
#include <filesystem>
#include <system_error>

#include "src/core/error.h"
#include "src/core/library.h"

namespace amur {
namespace {

std::atomic<DeviceCollectives*> found{nullptr};

}  // namespace

NcclSearch find_nccl(const std::string& module) {
  NcclSearch search;
  search.module = module;
  std::error_code ignored;
  if (!std::filesystem::exists(module, ignored)) {
    search.problem = fmt::format("this build has no NCCL back end ({} does not exist)", module);
    search.remedy = "build it on a machine with a CUDA toolkit and NCCL (docs/gpu.md)";
    return search;
  }
  const LoadedLibrary loaded =
      load_library(module, "the NCCL back end", kCollectivesInterfaceSymbol,
                   AMUR_COLLECTIVES_INTERFACE, kCollectivesSymbol);
  search.problem = loaded.problem;
  search.remedy = loaded.remedy;
  if (!search.usable()) return search;
  auto* collectives =
      reinterpret_cast<CollectivesFunction*>(symbol_of(loaded, kCollectivesSymbol))();
  search.libraries = collectives->library_text();
  search.problem = collectives->problem();
  if (search.usable())
    found = collectives;
  else
    search.remedy = "install a newer NCCL, or put its folder first into LD_LIBRARY_PATH";
  return search;
}

NcclSearch find_nccl() {
  return find_nccl(beside_the_program("libamur_nccl.so"));
}

DeviceCollectives& nccl_backend() {
  DeviceCollectives* collectives = found;
  if (!collectives) throw UsageError("NCCL is not in use here; `amur doctor` says why");
  return *collectives;
}

}  // namespace amur
