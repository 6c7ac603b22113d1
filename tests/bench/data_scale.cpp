// What a large data set costs: time to index it, time to start once indexed, batches a second, and
// resident memory of the process.
//   data_scale make FILE PAIRS      writes a TSV file of about 100 bytes a pair
//   data_scale start FILE BATCHES   opens it, draws batches, and prints the figures
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "comm/mpi_communicator.h"
#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/core/error.h"
#include "src/train/data/data.h"

namespace amur {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// MiB from a line of /proc/self/status.
double memory_mib(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(field + ":")) return std::stod(line.substr(field.size() + 1)) / 1024;
  throw IoError("/proc/self/status has no {}", field);
}

int make(const std::string& path, int64_t pairs) {
  std::ofstream file(path, std::ios::binary);
  std::string line;
  for (int64_t i = 0; i < pairs; ++i) {
    const Philox random = RandomKey(1).at(static_cast<uint64_t>(i));
    line = fmt::format(
        "query {} about {:x} and {:x}\tdocument {} that tells of {:x} and {:x} in some words\n", i,
        random.v[0], random.v[1], i, random.v[2], random.v[3]);
    file << line;
  }
  file.close();
  if (!file) throw IoError("cannot write {}", path);
  return kExitOk;
}

int start(Runtime& runtime, const std::string& path, int64_t batches) {
  ProcessGrid grid(runtime, {runtime.size(), 1});
  Config config;
  config.data.sources.resize(1);
  config.data.sources[0].path = path;
  config.data.eval_share = 0.0001;
  config.train.batch_size = 4096;
  config.data.vocab_size = 4000;
  const auto open_start = Clock::now();
  const Dataset data(config.data, grid.world(), grid.node());
  const double opened = seconds_since(open_start);
  const auto tokenizer = Tokenizer::train(config.data, vocabulary_texts(data, 5000));
  const auto first_start = Clock::now();
  BatchStream stream(data, *tokenizer, config, runtime.rank(), runtime.size(), {});
  stream.next();
  const double first = seconds_since(first_start);
  const auto rest_start = Clock::now();
  for (int64_t i = 0; i < batches; ++i) stream.next();
  const double rate =
      static_cast<double>(batches * config.train.batch_size) / seconds_since(rest_start);
  fmt::print(
      "rank {}: {} samples; opened in {:.2f} s, first batch after {:.2f} s, {:.0f} pairs/s; "
      "resident {:.0f} MiB, of it {:.0f} MiB shared file pages, peak {:.0f} MiB\n",
      runtime.rank(), data.samples(), opened, first, rate, memory_mib("VmRSS"),
      memory_mib("RssFile"), memory_mib("VmHWM"));
  return kExitOk;
}

int run(Runtime& runtime, int argc, char** argv) {
  const std::string command = argc == 4 ? argv[1] : "";
  if (command == "make") return make(argv[2], std::stoll(argv[3]));
  if (command == "start") return start(runtime, argv[2], std::stoll(argv[3]));
  throw UsageError("usage: data_scale make FILE PAIRS | data_scale start FILE BATCHES");
}

}  // namespace
}  // namespace amur

int main(int argc, char** argv) {
  return amur::run_main(argc, argv,
                        [&](amur::Runtime& runtime) { return amur::run(runtime, argc, argv); });
}
