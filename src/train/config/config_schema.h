// The declarations behind the configuration: what every key is called, may hold and means. The
// parser, the writer, the comparison and the reference are loops over this table.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/train/config/config.h"

namespace amur::config {

// Whether a run may be resumed with another value.
enum class OnResume : bool { may_change, fixed };

// One scalar of the configuration. `entry` picks the element of a list and is ignored elsewhere.
struct Key {
  std::string name;                // inside its group: "batch_size"
  std::string type;                // "a whole number of at least 1": completes "expected ..."
  std::vector<std::string> words;  // what an enumeration may hold; otherwise empty
  OnResume on_resume = OnResume::may_change;
  std::string doc;
  std::function<bool(Config&, size_t entry, const std::string& text)> set;  // false: not of `type`
  std::function<std::string(const Config&, size_t entry)> yaml;             // what `set` reads back
  bool quoted = false;  // free text, quoted in YAML
};

// The keys of one section ("train") or of the entries of one list ("data.sources").
struct Group {
  std::string name;
  std::string doc;
  std::vector<Key> keys;
  std::function<size_t(const Config&)> size;    // lists only
  std::function<void(Config&, size_t)> resize;  // lists only

  bool is_list() const { return static_cast<bool>(resize); }
  const Key* find(std::string_view key_name) const;
};

// All groups; a list follows the section that holds it.
const std::vector<Group>& schema();
const Group* find_group(std::string_view name);

// Visits every scalar that `config` holds, list entries included ("data.sources.0.path").
void for_each_value(const Config& config,
                    const std::function<void(const std::string& key, const Key& declaration,
                                             const std::string& yaml)>& visit);

// Where a value was given, for messages; "" when it is a default.
using Origins = std::function<std::string(const std::string& key)>;
struct Problem {
  std::string key, text;
};
// Defaults that depend on another key (loss.scale of siglip), for keys that were not given.
void apply_dependent_defaults(Config& config, const Origins& given_at);
// Combinations of values, each fine by itself, that cannot work together.
std::vector<Problem> impossible_combinations(const Config& config);

// Reads a number of bytes ("512MiB", "1.5 GB", "4096"); false if it is none. And its writing.
bool parse_bytes(const std::string& text, int64_t& bytes);
std::string bytes_text(int64_t bytes);

// Edits (insert, delete, replace, swap of neighbours) between two words.
size_t edit_distance(std::string_view a, std::string_view b);
// The candidate nearest to `word`, or "" if none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace amur::config
