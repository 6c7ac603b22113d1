#include "src/core/log.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "src/core/error.h"

namespace amur {
namespace {

struct Sink {
  std::mutex mutex;
  LogLevel level = LogLevel::info;
  int rank = 0;
  std::string rank_label;
  std::FILE* file = nullptr;
  bool progress_shown = false;
};

Sink& sink() {
  static Sink s;
  return s;
}

const char* prefix_of(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return "debug: ";
    case LogLevel::info: return "";
    case LogLevel::warning: return "warning: ";
    case LogLevel::error: return "error: ";
  }
  return "";
}

}  // namespace

void Log::set_rank(int rank, std::string rank_label) {
  std::lock_guard lock(sink().mutex);
  sink().rank = rank;
  sink().rank_label = std::move(rank_label);
}

void Log::set_level(LogLevel level) {
  std::lock_guard lock(sink().mutex);
  sink().level = level;
}

LogLevel Log::level() {
  std::lock_guard lock(sink().mutex);
  return sink().level;
}

void Log::open_file(const std::string& path) {
  std::lock_guard lock(sink().mutex);
  if (sink().rank != 0) return;
  if (sink().file) std::fclose(sink().file);
  sink().file = std::fopen(path.c_str(), "a");
  if (!sink().file) throw IoError("cannot open log file '{}': {}", path, std::strerror(errno));
}

void Log::close_file() {
  std::lock_guard lock(sink().mutex);
  if (sink().file) std::fclose(sink().file);
  sink().file = nullptr;
}

bool Log::on_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  return terminal;
}

void Log::progress(std::string_view line) {
  std::lock_guard lock(sink().mutex);
  if (sink().rank != 0 || !on_terminal()) return;
  if (line.empty() && !sink().progress_shown) return;
  fmt::print(stderr, "\r\x1b[K{}", line);
  std::fflush(stderr);
  sink().progress_shown = !line.empty();
}

void Log::write(LogLevel level, const std::string& message, bool every_rank) {
  std::lock_guard lock(sink().mutex);
  Sink& s = sink();
  if (level < s.level || (s.rank != 0 && !every_rank)) return;
  const std::string who =
      every_rank && !s.rank_label.empty() ? s.rank_label + ": " : std::string();
  const std::string line = fmt::format("{}{}{}\n", who, prefix_of(level), message);
  if (s.progress_shown) {
    fmt::print(stderr, "\r\x1b[K");
    s.progress_shown = false;
  }
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  if (s.file) {
    std::fputs(line.c_str(), s.file);
    std::fflush(s.file);
  }
}

}  // namespace amur
