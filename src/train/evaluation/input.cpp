#include "src/train/evaluation/input.h"

#include <charconv>
#include <cmath>
#include <filesystem>

#include "src/core/error.h"
#include "src/train/data/line_format.h"
#include "src/train/data/pair_source.h"

namespace amur {
namespace {

constexpr int64_t kComplaints = 5;

template <class T>
bool parse_whole(std::string_view field, T& value) {
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  return error == std::errc() && end == field.data() + field.size();
}

}  // namespace

void read_lines(const TextBytes& text, const std::string& path, const LineVisitor& line) {
  int64_t malformed = 0;
  std::string complaints;
  for_each_line(text.view(), [&](std::string_view content, size_t offset, int64_t number) {
    if (is_blank(content)) return;
    const std::string reason = is_utf8(content) ? line(content, offset, number) : "not UTF-8";
    if (reason.empty()) return;
    if (malformed++ < kComplaints) complaints += fmt::format("\n{}:{}: {}", path, number, reason);
  });
  if (malformed > 0)
    throw UsageError("{}: {} malformed {}:{}", path, malformed, malformed == 1 ? "line" : "lines",
                     complaints);
}

std::vector<std::string_view> tsv_fields(std::string_view line) {
  std::vector<std::string_view> fields;
  for (;;) {
    const size_t tab = line.find('\t');
    fields.push_back(trimmed(line.substr(0, tab)));
    if (tab == std::string_view::npos) return fields;
    line.remove_prefix(tab + 1);
  }
}

bool parse_number(std::string_view field, double& value) {
  return parse_whole(field, value) && std::isfinite(value);
}

bool parse_number(std::string_view field, int32_t& value) {
  return parse_whole(field, value);
}

void broadcast(std::vector<int32_t>& values, Communicator& world) {
  int64_t size = world.rank() == 0 ? std::ssize(values) : 0;
  size = world.max(size);
  values.resize(static_cast<size_t>(size));
  const TensorView view(values.data(), {size}, DType::i32);
  world.broadcast(std::span(&view, 1), 0);
}

std::string plain_or_gzip(const std::string& path) {
  if (std::filesystem::exists(path)) return path;
  if (std::filesystem::exists(path + ".gz")) return path + ".gz";
  throw IoError("there is neither '{}' nor '{}.gz'", path, path);
}

}  // namespace amur
