// Reading a configuration: YAML to a tree that knows where everything stood, the tree to values.
#include "src/train/config/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>

#include "src/train/config/config_schema.h"

namespace amur {

using config::find_group;
using config::Group;
using config::Key;
using config::schema;

namespace {

struct Tree {
  enum class Kind { null, scalar, list, map };
  Kind kind = Kind::null;
  std::string text{};                                    // scalar
  std::vector<std::pair<std::string, Tree>> children{};  // of a list the names are empty
  std::string at{};                                      // "configs/x.yaml:14" or "--set a.b=c"

  Tree* child(std::string_view name) {
    for (auto& [child_name, tree] : children)
      if (child_name == name) return &tree;
    return nullptr;
  }
};

const char* name_of(Tree::Kind kind) {
  switch (kind) {
    case Tree::Kind::null:
      return "nothing";
    case Tree::Kind::scalar:
      return "a single value";
    case Tree::Kind::list:
      return "a list";
    case Tree::Kind::map:
      return "a map of keys";
  }
  return "?";
}

std::string did_you_mean(const std::string& suggestion) {
  return suggestion.empty() ? "" : fmt::format(" (did you mean {}?)", suggestion);
}

// The key that an unknown one was probably meant to be. A name of another section counts too:
// `train.learning_rate` is `optimizer.learning_rate`.
std::string suggest_key(const std::string& section, const std::string& name) {
  std::vector<std::string> siblings, everywhere;
  for (const Group& group : schema()) {
    if (section.empty() && !group.is_list()) siblings.push_back(group.name);
    for (const Key& key : group.keys) {
      if (group.name == section) siblings.push_back(key.name);
      if (!group.is_list()) everywhere.push_back(group.name + "." + key.name);
    }
    if (group.is_list() && group.name.rfind(section + ".", 0) == 0)
      siblings.push_back(group.name.substr(section.size() + 1));
  }
  std::string prefix = section.empty() ? "" : section + ".";
  if (std::string near = config::nearest(name, siblings); !near.empty()) return prefix + near;
  for (const std::string& full : everywhere)
    if (full.substr(full.find('.') + 1) == name) return full;
  return config::nearest(prefix + name, everywhere);
}

class Reader {
 public:
  explicit Reader(std::string origin) : origin_(std::move(origin)) {
    root_.kind = Tree::Kind::map;
    root_.at = origin_;
  }

  void read_yaml(const std::string& yaml) {
    std::vector<YAML::Node> documents;
    try {
      documents = YAML::LoadAll(yaml);
      if (documents.size() > 1) {
        problem(origin_, "", "holds more than one YAML document; use one");
      } else if (!documents.empty() && !documents[0].IsNull()) {
        root_ = convert(documents[0], "", [&](const YAML::Mark& mark) {
          return fmt::format("{}:{}", origin_, mark.line + 1);
        });
      }
    } catch (const YAML::Exception& e) {
      problem(fmt::format("{}:{}:{}", origin_, e.mark.line + 1, e.mark.column + 1), "",
              "is not YAML: " + e.msg);
    }
    if (root_.kind != Tree::Kind::map) {
      problem(root_.at, "",
              fmt::format("holds {}; expected sections such as `train:`", name_of(root_.kind)));
      root_ = Tree{.kind = Tree::Kind::map, .at = origin_};
    }
  }

  void apply_override(const std::string& setting) {
    std::string at = "--set " + setting;
    size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0) {
      problem(at, "", "expected section.key=value");
      return;
    }
    Tree value = override_value(setting.substr(equals + 1), setting.substr(0, equals), at);
    if (Tree* place = place_of(setting.substr(0, equals), at)) *place = std::move(value);
  }

  // Before anything is read: the values of keys that are not given.
  void start_with(const StartingPoint& start) {
    Tree* train = root_.child("train");
    Tree* from = train ? train->child("start_from") : nullptr;
    if (!from || from->kind != Tree::Kind::scalar || from->text.empty()) return;
    try {
      config_ = start(from->text);
    } catch (const Error& e) {
      throw UsageError("{}: train.start_from: {}", from->at, e.what());
    }
  }

  Config finish() {
    for (auto& [name, tree] : root_.children) {
      const Group* group = find_group(name);
      if (!group || group->is_list()) {
        problem(tree.at, name, "unknown section" + did_you_mean(suggest_key("", name)));
      } else if (tree.kind == Tree::Kind::map) {
        read_section(*group, tree);
      } else if (tree.kind != Tree::Kind::null) {
        problem(tree.at, name, fmt::format("expected a map of keys, found {}", name_of(tree.kind)));
      }
    }
    auto given_at = [&](const std::string& key) {
      auto found = given_.find(key);
      return found == given_.end() ? std::string() : found->second;
    };
    config::apply_dependent_defaults(config_, given_at);
    // With values missing because they could not be read, combinations would only confuse.
    if (problems_.empty()) {
      for (const config::Problem& p : config::impossible_combinations(config_)) {
        std::string at = given_at(p.key);
        problem(at.empty() ? origin_ : at, p.key, p.text);
      }
    }
    if (!problems_.empty()) throw UsageError("{}", fmt::join(problems_, "\n"));
    return std::move(config_);
  }

 private:
  void problem(const std::string& at, const std::string& key, const std::string& text) {
    problems_.push_back(key.empty() ? fmt::format("{}: {}", at, text)
                                    : fmt::format("{}: {}: {}", at, key, text));
  }

  // `where` turns a mark into the text that messages start with; `path` names the node.
  template <class Where>
  Tree convert(const YAML::Node& node, const std::string& path, const Where& where) {
    Tree tree;
    tree.at = where(node.Mark());
    if (node.IsScalar()) {
      tree.kind = Tree::Kind::scalar;
      tree.text = node.Scalar();
    } else if (node.IsSequence()) {
      tree.kind = Tree::Kind::list;
      for (const YAML::Node& element : node) {
        std::string name = fmt::format("{}.{}", path, tree.children.size());
        tree.children.emplace_back("", convert(element, name, where));
      }
    } else if (node.IsMap()) {
      tree.kind = Tree::Kind::map;
      for (const auto& entry : node) {
        if (!entry.first.IsScalar()) {
          problem(where(entry.first.Mark()), path, "a key must be a single word");
          continue;
        }
        std::string name = entry.first.Scalar();
        std::string full = path.empty() ? name : path + "." + name;
        Tree value = convert(entry.second, full, where);
        value.at = where(entry.first.Mark());
        if (const Tree* first = tree.child(name)) {
          problem(value.at, full, "given twice, first at " + first->at);
        } else {
          tree.children.emplace_back(name, std::move(value));
        }
      }
    }
    return tree;
  }

  // A value on the command line is taken as it stands, so that `query_prefix=query: ` needs no
  // second layer of quotes; only what opens like a YAML list, map or quoted text is parsed.
  Tree override_value(const std::string& text, const std::string& path, const std::string& at) {
    if (text.find_first_of("[{\"'") == 0) {
      try {
        return convert(YAML::Load(text), path, [&](const YAML::Mark&) { return at; });
      } catch (const YAML::Exception& e) {
        problem(at, path, "is not YAML: " + e.msg);
        return Tree{.at = at};
      }
    }
    return Tree{.kind = Tree::Kind::scalar, .text = text, .at = at};
  }

  // The node that `path` names; made where the file has none. Null, with a problem reported, where
  // the path leads through a scalar or past the end of a list.
  Tree* place_of(const std::string& path, const std::string& at) {
    Tree* tree = &root_;
    std::istringstream parts(path);
    for (std::string part; std::getline(parts, part, '.');) {
      if (tree->kind == Tree::Kind::null) tree->kind = Tree::Kind::map;
      if (tree->kind == Tree::Kind::list) {
        size_t index = part.find_first_not_of("0123456789") == std::string::npos && part.size() < 9
                           ? std::stoul(part)
                           : tree->children.size();
        if (part.empty() || index >= tree->children.size()) {
          problem(at, "",
                  fmt::format("there is no entry {} in a list of {}", part, tree->children.size()));
          return nullptr;
        }
        tree = &tree->children[index].second;
      } else if (tree->kind == Tree::Kind::map) {
        Tree* next = tree->child(part);
        if (!next) {
          tree->children.emplace_back(part, Tree{.at = at});
          next = &tree->children.back().second;
        }
        tree = next;
      } else {
        problem(at, "", fmt::format("{} is inside a single value", part));
        return nullptr;
      }
    }
    return tree;
  }

  void read_section(const Group& group, Tree& section) {
    for (auto& [name, tree] : section.children) {
      std::string full = group.name + "." + name;
      const Group* list = find_group(full);
      if (const Key* key = group.find(name)) {
        read_value(*key, full, 0, tree);
      } else if (list) {
        read_list(*list, tree);
      } else {
        problem(tree.at, full, "unknown key" + did_you_mean(suggest_key(group.name, name)));
      }
    }
  }

  void read_list(const Group& list, Tree& tree) {
    given_[list.name] = tree.at;
    if (tree.kind == Tree::Kind::null) return;
    if (tree.kind != Tree::Kind::list) {
      problem(tree.at, list.name, fmt::format("expected a list, found {}", name_of(tree.kind)));
      return;
    }
    list.resize(config_, tree.children.size());
    for (size_t entry = 0; entry < tree.children.size(); ++entry) {
      Tree& element = tree.children[entry].second;
      std::string prefix = fmt::format("{}.{}", list.name, entry);
      if (element.kind != Tree::Kind::map) {
        problem(element.at, prefix,
                fmt::format("expected a map of keys, found {}", name_of(element.kind)));
        continue;
      }
      for (const Key& key : list.keys) given_[prefix + "." + key.name] = element.at;
      for (auto& [name, value] : element.children) {
        if (const Key* key = list.find(name)) {
          read_value(*key, prefix + "." + name, entry, value);
        } else {
          std::vector<std::string> names;
          for (const Key& known : list.keys) names.push_back(known.name);
          problem(value.at, prefix + "." + name,
                  "unknown key" + did_you_mean(config::nearest(name, names)));
        }
      }
    }
  }

  void read_value(const Key& key, const std::string& full, size_t entry, const Tree& tree) {
    given_[full] = tree.at;
    bool empty_text = key.quoted && tree.kind == Tree::Kind::null;
    if (empty_text || (tree.kind == Tree::Kind::scalar && key.set(config_, entry, tree.text)))
      return;
    if (tree.kind != Tree::Kind::scalar) {
      problem(tree.at, full, fmt::format("expected {}, found {}", key.type, name_of(tree.kind)));
      return;
    }
    problem(tree.at, full,
            fmt::format("expected {}, found '{}'{}", key.type, tree.text,
                        did_you_mean(config::nearest(tree.text, key.words))));
  }

  std::string origin_;
  Tree root_;
  Config config_;
  std::map<std::string, std::string> given_;  // key -> where
  std::vector<std::string> problems_;
};

}  // namespace

namespace {

Config read_config(const std::string& yaml, const std::string& origin,
                   const std::vector<std::string>& overrides, const StartingPoint& start) {
  Reader reader(origin);
  reader.read_yaml(yaml);
  for (const std::string& setting : overrides) reader.apply_override(setting);
  if (start) reader.start_with(start);
  return reader.finish();
}

}  // namespace

Config parse_config(const std::string& yaml, const std::string& origin,
                    const std::vector<std::string>& overrides) {
  return read_config(yaml, origin, overrides, {});
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides,
                   const StartingPoint& start) {
  errno = 0;
  std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()).good())
    throw UsageError("cannot read the configuration {}: {}", path,
                     errno ? std::strerror(errno) : "it is empty");
  return read_config(text.str(), path, overrides, start);
}

}  // namespace amur
