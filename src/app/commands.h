// The subcommands of `amur`. Each reads its own arguments (without the name) and gives the exit
// code.
#pragma once

#include <string>
#include <vector>

#include "comm/runtime.h"

namespace amur {

struct Command {
  const char* name;
  const char* about;  // one line, for `amur --help`
  int (*run)(Runtime&, const std::vector<std::string>& args);
};

// In the order of `amur --help`.
const std::vector<Command>& commands();

int run_train(Runtime& runtime, const std::vector<std::string>& args);
int run_eval(Runtime& runtime, const std::vector<std::string>& args);
int run_embed(Runtime& runtime, const std::vector<std::string>& args);
int run_inspect(Runtime& runtime, const std::vector<std::string>& args);
int run_compare(Runtime& runtime, const std::vector<std::string>& args);
int run_import(Runtime& runtime, const std::vector<std::string>& args);
int run_export(Runtime& runtime, const std::vector<std::string>& args);
int run_widen(Runtime& runtime, const std::vector<std::string>& args);
int run_verify_grad(Runtime& runtime, const std::vector<std::string>& args);
int run_doctor(Runtime& runtime, const std::vector<std::string>& args);

}  // namespace amur
