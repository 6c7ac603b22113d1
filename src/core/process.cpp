#include "src/core/process.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

namespace amur {
namespace {

// The number behind a word at the beginning of a line of a file of the kernel's; 0 without one.
size_t value_of(const char* path, const std::string& word) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(word)) return std::strtoull(line.c_str() + word.size(), nullptr, 10);
  return 0;
}

// What a limit on this control group leaves; pages of files can be had back.
size_t left_in_group() {
  constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();
  std::ifstream file("/sys/fs/cgroup/memory.max");
  size_t limit = 0;
  if (!(file >> limit)) return kNoLimit;  // "max", or no such file
  const size_t used = value_of("/sys/fs/cgroup/memory.current", ""),
               files = value_of("/sys/fs/cgroup/memory.stat", "inactive_file ");
  return limit - std::min(limit, used - std::min(used, files));
}

}  // namespace

size_t resident_bytes() {
  std::FILE* f = std::fopen("/proc/self/statm", "r");
  if (!f) return 0;
  unsigned long total = 0, resident = 0;
  const int read = std::fscanf(f, "%lu %lu", &total, &resident);
  std::fclose(f);
  return read == 2 ? resident * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

size_t available_bytes() {
  return std::min(value_of("/proc/meminfo", "MemAvailable:") * 1024, left_in_group());
}

size_t peak_resident_bytes() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

double cpu_seconds() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace amur
