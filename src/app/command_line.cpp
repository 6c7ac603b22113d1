#include "src/app/command_line.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <sstream>
#include <utility>

#include "src/core/error.h"
#include "src/core/gpu.h"
#include "src/core/log.h"
#include "src/train/config/config_schema.h"

namespace amur {

namespace po = boost::program_options;

struct CommandLine::State {
  struct Argument {
    std::string name, doc;
    std::string* target;
  };
  struct Choice {
    std::string name;
    std::string* target;
    std::vector<std::string> words;
  };

  std::string command, about, footer;
  std::vector<Argument> arguments;
  std::vector<Choice> choices;
  po::options_description visible{"Options", 100, 50};

  std::string see_help() const {
    return fmt::format("`amur {} --help` lists what it takes", command);
  }

  [[noreturn]] void unknown_option(const std::string& given) const {
    std::vector<std::string> known;
    for (const auto& option : visible.options()) known.push_back("--" + option->long_name());
    std::string near = config::nearest(given.substr(0, given.find('=')), known);
    throw UsageError("amur {}: unknown option {}{}; {}", command, given,
                     near.empty() ? "" : fmt::format(" (did you mean {}?)", near), see_help());
  }
};

CommandLine::CommandLine(std::string command, std::string about)
    : state_(std::make_unique<State>()) {
  state_->command = std::move(command);
  state_->about = std::move(about);
}

CommandLine::~CommandLine() = default;

CommandLine& CommandLine::argument(const std::string& name, std::string& target,
                                   const std::string& doc) {
  state_->arguments.push_back({name, doc, &target});
  return *this;
}

CommandLine& CommandLine::flag(const std::string& name, bool& target, const std::string& doc) {
  state_->visible.add_options()(name.c_str(), po::bool_switch(&target), doc.c_str());
  return *this;
}

CommandLine& CommandLine::option(const std::string& name, std::string& target,
                                 const std::string& value_name, const std::string& doc) {
  state_->visible.add_options()(
      name.c_str(), po::value<std::string>(&target)->value_name(value_name), doc.c_str());
  return *this;
}

CommandLine& CommandLine::option(const std::string& name, int64_t& target,
                                 const std::string& value_name, const std::string& doc) {
  state_->visible.add_options()(name.c_str(), po::value<int64_t>(&target)->value_name(value_name),
                                doc.c_str());
  return *this;
}

CommandLine& CommandLine::option(const std::string& name, std::vector<std::string>& target,
                                 const std::string& value_name, const std::string& doc) {
  state_->visible.add_options()(
      name.c_str(),
      po::value<std::vector<std::string>>(&target)->composing()->value_name(value_name),
      doc.c_str());
  return *this;
}

CommandLine& CommandLine::choice(const std::string& name, std::string& target,
                                 const std::vector<std::string>& words, const std::string& doc) {
  state_->choices.push_back({name, &target, words});
  return option(name, target, fmt::format("{}", fmt::join(words, "|")), doc);
}

CommandLine& CommandLine::footer(std::string text) {
  state_->footer = std::move(text);
  return *this;
}

bool CommandLine::parse(const std::vector<std::string>& args) {
  bool help = false;
  for (const std::string& arg : args) {
    if (arg == "--") break;
    help = help || arg == "--help" || arg == "-h";
  }
  if (help) return false;

  po::options_description all;
  std::vector<std::string> given;
  all.add(state_->visible);
  all.add_options()("positional arguments", po::value<std::vector<std::string>>(&given));
  po::positional_options_description positional;
  positional.add("positional arguments", -1);
  // No abbreviations: they would break scripts when an option is added.
  int style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
  try {
    po::variables_map values;
    po::store(po::command_line_parser(args).options(all).positional(positional).style(style).run(),
              values);
    po::notify(values);
  } catch (const po::unknown_option& e) {
    state_->unknown_option(e.get_option_name());
  } catch (const po::error& e) {
    throw UsageError("amur {}: {}; {}", state_->command, e.what(), state_->see_help());
  }

  const auto& arguments = state_->arguments;
  if (given.size() > arguments.size())
    throw UsageError("amur {}: '{}' is one argument too many; {}", state_->command,
                     given[arguments.size()], state_->see_help());
  if (given.size() < arguments.size())
    throw UsageError("amur {}: {} is missing ({}); {}", state_->command,
                     arguments[given.size()].name, arguments[given.size()].doc, state_->see_help());
  for (size_t i = 0; i < given.size(); ++i) *arguments[i].target = given[i];
  for (const State::Choice& choice : state_->choices) {
    if (std::find(choice.words.begin(), choice.words.end(), *choice.target) == choice.words.end())
      throw UsageError("amur {}: --{} is '{}', but must be one of {}", state_->command, choice.name,
                       *choice.target, fmt::join(choice.words, ", "));
  }
  return true;
}

std::string CommandLine::help() const {
  std::ostringstream out;
  out << state_->about << "\n\nUsage: amur " << state_->command;
  for (const auto& argument : state_->arguments) out << ' ' << argument.name;
  out << " [options]\n";
  if (!state_->arguments.empty()) out << '\n';
  for (const auto& argument : state_->arguments)
    out << fmt::format("  {:<20} {}\n", argument.name, argument.doc);
  po::options_description options = state_->visible;
  options.add_options()("help", "print this and leave");
  out << '\n' << options;
  if (!state_->footer.empty()) out << '\n' << state_->footer;
  return out.str();
}

void RunOptions::declare_set(CommandLine& line) {
  line.option("set", overrides, "KEY=VALUE",
              "override a key of the configuration, for example train.steps=100; may be repeated");
}

void RunOptions::declare_run(CommandLine& line) {
  line.option("run-dir", run_dir, "DIR", "folder of the run: configuration, log, checkpoints");
  line.option("resume", resume, "auto|never|PATH",
              "auto: go on from the newest complete checkpoint of the run folder, if it has one");
}

void RunOptions::declare_device(CommandLine& line) {
  line.choice("device", device, {"auto", "cpu", "cuda"}, "where to compute");
  line.choice("comm", comm, {"auto", "nccl", "mpi"}, "how tensors travel between ranks");
}

void RunOptions::declare_json(CommandLine& line) {
  line.flag("json", json,
            "print one JSON document on standard output; messages go to standard error");
}

int RunOptions::gpus() const {
  if (device == "cpu") return 0;
  const GpuSearch search = find_gpus();
  if (!search.usable()) {
    if (device == "cuda")
      throw UsageError("--device cuda: {}; {}, or use --device cpu", search.problem, search.remedy);
    Log::info("computing on the CPU: {}", search.problem);
    return 0;
  }
  const std::string gpu = search.gpus.at(0).text();
  if (device == "auto") {
    Log::info("computing on the CPU: {} is there, but is taken only by --device cuda (docs/gpu.md)",
              gpu);
    return 0;
  }
  Log::warn("computing on {}: this is untried, see docs/gpu.md", gpu);
  return static_cast<int>(search.gpus.size());
}

CommBackend RunOptions::comm_backend() const {
  if (comm == "nccl") return CommBackend::nccl;
  return comm == "mpi" ? CommBackend::mpi : CommBackend::automatic;
}

CommBackend RunOptions::cpu_backend() const {
  if (device == "cuda")
    throw UsageError("--device cuda: this command computes on the CPU alone; use --device cpu");
  if (comm == "nccl")
    throw UsageError("--comm nccl: this command has no tensors on a GPU; use --comm mpi");
  return comm_backend();
}

}  // namespace amur
