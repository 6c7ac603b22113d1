// The configuration as text: YAML, the reference, differences.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>

#include "src/train/config/config_schema.h"

namespace amur {

using config::Group;
using config::Key;
using config::OnResume;
using config::schema;

namespace config {
namespace {

struct Unit {
  const char* name;
  int64_t bytes;
};
constexpr Unit kUnits[] = {
    {"TiB", int64_t{1} << 40},
    {"GiB", int64_t{1} << 30},
    {"MiB", int64_t{1} << 20},
    {"KiB", int64_t{1} << 10},
    {"TB", 1'000'000'000'000},
    {"GB", 1'000'000'000},
    {"MB", 1'000'000},
    {"kB", 1'000},
    {"KB", 1'000},
    {"B", 1},
    {"", 1},
};

}  // namespace

bool parse_bytes(const std::string& text, int64_t& bytes) {
  double number = 0;
  const char* end = text.data() + text.size();
  auto [stop, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc{}) return false;
  while (stop != end && *stop == ' ') ++stop;
  std::string_view name(stop, static_cast<size_t>(end - stop));
  for (const Unit& unit : kUnits) {
    if (name != unit.name) continue;
    double product = number * static_cast<double>(unit.bytes);
    if (product < 0 || product > 9e15 || product != std::floor(product)) return false;
    bytes = static_cast<int64_t>(product);
    return true;
  }
  return false;
}

std::string bytes_text(int64_t bytes) {
  for (const Unit& unit : kUnits) {
    std::string_view name = unit.name;
    bool binary = name.size() == 3;
    if (binary && bytes != 0 && bytes % unit.bytes == 0)
      return fmt::format("{}{}", bytes / unit.bytes, name);
  }
  return fmt::format("{}", bytes);
}

size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the table of prefixes: optimal string alignment.
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  std::iota(last.begin(), last.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      now[j] = std::min({replace, last[j] + 1, now[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

void for_each_value(
    const Config& config,
    const std::function<void(const std::string&, const Key&, const std::string&)>& visit) {
  for (const Group& group : schema()) {
    size_t entries = group.is_list() ? group.size(config) : 1;
    for (size_t entry = 0; entry < entries; ++entry) {
      std::string prefix =
          group.is_list() ? fmt::format("{}.{}.", group.name, entry) : group.name + ".";
      for (const Key& key : group.keys) visit(prefix + key.name, key, key.yaml(config, entry));
    }
  }
}

}  // namespace config

namespace {

// A double-quoted YAML scalar.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

std::string yaml_value(const Key& key, const Config& config, size_t entry) {
  std::string value = key.yaml(config, entry);
  return key.quoted ? quoted(value) : value;
}

void append_list(const Group& group, const Config& config, std::string& out) {
  std::string name = group.name.substr(group.name.find('.') + 1);
  size_t entries = group.size(config);
  if (entries == 0) {
    out += fmt::format("  {}: []\n", name);
    return;
  }
  out += fmt::format("  {}:\n", name);
  for (size_t entry = 0; entry < entries; ++entry) {
    const char* lead = "    - ";
    for (const Key& key : group.keys) {
      out += fmt::format("{}{}: {}\n", lead, key.name, yaml_value(key, config, entry));
      lead = "      ";
    }
  }
}

// A list with one entry of default values, so that the defaults of its keys can be printed.
Config with_one_entry(const Group& list) {
  Config config;
  list.resize(config, 1);
  return config;
}

std::string default_text(const Group& group, const Key& key) {
  return yaml_value(key, group.is_list() ? with_one_entry(group) : Config{}, 0);
}

// Markdown treats `|` as the end of a table cell.
std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2)
    text.insert(at, 1, '\\');
  return text;
}

}  // namespace

std::string to_yaml(const Config& config) {
  std::string out;
  for (const Group& group : schema()) {
    if (group.is_list()) {
      append_list(group, config, out);
      continue;
    }
    out += group.name + ":\n";
    for (const Key& key : group.keys)
      out += fmt::format("  {}: {}\n", key.name, yaml_value(key, config, 0));
  }
  return out;
}

std::string configuration_reference() {
  std::string out =
      "# Configuration\n"
      "\n"
      "Generated from the declarations in `src/train/config/config_keys.cpp` by `amur help "
      "configuration`;\na test compares the two.\n"
      "\n"
      "A configuration is a YAML file with one map for each section below. Keys that are left out\n"
      "have their default. `--set section.key=value` overrides the file, also inside lists\n"
      "(`--set data.sources.0.path=pairs.tsv`). All problems of a file are reported together, "
      "each\n"
      "with its line. The resolved configuration, with every key, is written to the run folder "
      "and\n"
      "kept in each checkpoint.\n"
      "\n"
      "A run that is resumed may change the keys marked *may change*; those marked *fixed* decide\n"
      "the model, its training state or the data and must equal the checkpoint's.\n";
  for (const Group& group : schema()) {
    out += fmt::format("\n## {}{}\n\n{}{}\n\n", group.name, group.is_list() ? " (list)" : "",
                       group.doc, group.is_list() ? " Default: no entries." : "");
    out += "| key | value | default | on resume | meaning |\n";
    out += "| --- | --- | --- | --- | --- |\n";
    for (const Key& key : group.keys) {
      out += fmt::format("| `{}` | {} | `{}` | {} | {} |\n", key.name, cell(key.type),
                         default_text(group, key),
                         key.on_resume == OnResume::fixed ? "fixed" : "may change", cell(key.doc));
    }
  }
  return out;
}

std::vector<ConfigDifference> compare_configs(const Config& saved, const Config& now) {
  struct Pair {
    std::string saved = "absent", now = "absent";
    bool fixed = false;
  };
  std::map<std::string, Pair> values;
  std::vector<std::string> order;
  auto collect = [&](const Config& config, std::string Pair::*side) {
    config::for_each_value(config,
                           [&](const std::string& name, const Key& key, const std::string& value) {
                             auto [at, is_new] = values.try_emplace(name);
                             if (is_new) order.push_back(name);
                             at->second.*side = key.quoted ? quoted(value) : value;
                             at->second.fixed = key.on_resume == OnResume::fixed;
                           });
  };
  collect(saved, &Pair::saved);
  collect(now, &Pair::now);

  std::vector<ConfigDifference> differences;
  for (const std::string& name : order) {
    const Pair& pair = values[name];
    if (pair.saved != pair.now) differences.push_back({name, pair.saved, pair.now, pair.fixed});
  }
  return differences;
}

}  // namespace amur
