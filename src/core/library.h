// Libraries of ours that are loaded at run time, because they need what not every machine has.
#pragma once

#include <string>

namespace amur {

// "/path/of/the/program/libamur_cuda.so"
std::string beside_the_program(const char* name);

struct LoadedLibrary {
  void* library = nullptr;
  // Why it was not loaded, and what to do; both empty where it was.
  std::string problem, remedy;
};

// `what` names it in messages ("the GPU back end"). `interface_symbol` is a function of it that
// returns what it was built for: that has to be `interface`, or it is refused. `entry_symbol` has
// to be there too. Libraries stay loaded: device code cannot be unloaded safely.
LoadedLibrary load_library(const std::string& path, const char* what, const char* interface_symbol,
                           const std::string& interface, const char* entry_symbol);

// A function of a loaded library; null where it has none of this name.
void* symbol_of(const LoadedLibrary& loaded, const char* name);

}  // namespace amur
