// The command line of one subcommand: what it takes, its --help, and messages for what it does not
// know. Boost.Program_options stays behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/process_grid.h"

namespace amur {

class CommandLine {
 public:
  // `about` is one sentence for the head of --help.
  CommandLine(std::string command, std::string about);
  ~CommandLine();

  // Targets keep their value where the option is not given; they must outlive `parse`.
  // Positional arguments are required, in the order of declaration.
  CommandLine& argument(const std::string& name, std::string& target, const std::string& doc);
  CommandLine& flag(const std::string& name, bool& target, const std::string& doc);
  CommandLine& option(const std::string& name, std::string& target, const std::string& value_name,
                      const std::string& doc);
  CommandLine& option(const std::string& name, int64_t& target, const std::string& value_name,
                      const std::string& doc);
  // May be given several times.
  CommandLine& option(const std::string& name, std::vector<std::string>& target,
                      const std::string& value_name, const std::string& doc);
  CommandLine& choice(const std::string& name, std::string& target,
                      const std::vector<std::string>& words, const std::string& doc);
  // Text after the options in --help.
  CommandLine& footer(std::string text);

  // False for --help: the caller prints `help()` and leaves. Throws UsageError for everything that
  // was not declared, is missing, or is not of its kind.
  bool parse(const std::vector<std::string>& args);
  std::string help() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The options that mean the same in every command that has them.
struct RunOptions {
  std::vector<std::string> overrides;  // --set section.key=value
  std::string run_dir;                 // "": chosen by the command
  std::string resume = "auto";         // auto, never or the path of a checkpoint
  std::string device = "auto";         // auto, cpu, cuda
  std::string comm = "auto";           // auto, nccl, mpi
  bool json = false;                   // one JSON document on standard output

  void declare_set(CommandLine& line);
  void declare_run(CommandLine& line);     // --run-dir and --resume
  void declare_device(CommandLine& line);  // --device and --comm
  void declare_json(CommandLine& line);
  // Call these after parsing. All refuse what cannot be had.
  //
  // GPUs of this machine to compute on, in turn to its ranks; 0: the CPU, which --device auto
  // takes, and logs why.
  int gpus() const;
  // What --comm asks for.
  CommBackend comm_backend() const;
  // The same for a command that computes on the CPU alone: --device cuda is refused.
  CommBackend cpu_backend() const;
};

}  // namespace amur
