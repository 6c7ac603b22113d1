#include "src/core/library.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "src/core/error.h"

namespace amur {

std::string beside_the_program(const char* name) {
  std::error_code failed;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", failed);
  return failed ? name : (program.parent_path() / name).string();
}

void* symbol_of(const LoadedLibrary& loaded, const char* name) {
  return dlsym(loaded.library, name);
}

LoadedLibrary load_library(const std::string& path, const char* what, const char* interface_symbol,
                           const std::string& interface, const char* entry_symbol) {
  LoadedLibrary loaded;
  loaded.library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!loaded.library) {
    loaded.problem = fmt::format("{} cannot be loaded: {}", what, dlerror());
    loaded.remedy = "install the libraries that it names, or put their folder into LD_LIBRARY_PATH";
    return loaded;
  }
  using InterfaceFunction = const char*();
  auto* theirs_of = reinterpret_cast<InterfaceFunction*>(symbol_of(loaded, interface_symbol));
  const std::string theirs = theirs_of ? theirs_of() : "nothing that this program knows";
  if (!theirs_of || !symbol_of(loaded, entry_symbol) || theirs != interface) {
    loaded.problem =
        fmt::format("{} was built for {}, this program for {}", path, theirs, interface);
    loaded.remedy = "build both together";
  }
  return loaded;
}

}  // namespace amur
