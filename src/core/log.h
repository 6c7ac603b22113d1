// The one log sink of the process: standard error and, once a run folder is open, its log.txt.
// By default only rank 0 speaks; `Log::warn_here` and errors carry the rank.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace amur {

enum class LogLevel { debug, info, warning, error };

class Log {
 public:
  // `rank_label` (e.g. "rank 3/8 node07") prefixes everything said by a rank other than 0.
  static void set_rank(int rank, std::string rank_label);
  static void set_level(LogLevel level);
  static LogLevel level();
  // Also append to this file from now on (rank 0 only); throws IoError if it cannot be opened.
  static void open_file(const std::string& path);
  static void close_file();

  // Rank 0 only.
  template <class... A>
  static void info(fmt::format_string<A...> format, A&&... a) {
    write(LogLevel::info, fmt::format(format, std::forward<A>(a)...), false);
  }
  template <class... A>
  static void debug(fmt::format_string<A...> format, A&&... a) {
    if (level() == LogLevel::debug)
      write(LogLevel::debug, fmt::format(format, std::forward<A>(a)...), false);
  }
  template <class... A>
  static void warn(fmt::format_string<A...> format, A&&... a) {
    write(LogLevel::warning, fmt::format(format, std::forward<A>(a)...), false);
  }
  // From whichever rank calls it.
  template <class... A>
  static void warn_here(fmt::format_string<A...> format, A&&... a) {
    write(LogLevel::warning, fmt::format(format, std::forward<A>(a)...), true);
  }
  template <class... A>
  static void error_here(fmt::format_string<A...> format, A&&... a) {
    write(LogLevel::error, fmt::format(format, std::forward<A>(a)...), true);
  }

  // A line that the next one overwrites on a terminal; "" removes it. Ignored when standard error
  // is not a terminal.
  static void progress(std::string_view line);
  static bool on_terminal();

 private:
  static void write(LogLevel level, const std::string& message, bool every_rank);
};

}  // namespace amur
