// docs/checkpoint-format.md lists exactly the objects and attributes that a file has.
#include <fstream>
#include <set>

#include "src/train/checkpoint/hdf5_file.h"
#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

using Rows = std::set<std::string>;

// Cells of the tables' rows that begin with `/...`, without the back quotes: objects as "/model",
// attributes as "/model/<name> kind i64".
void read_document(Rows* objects, Rows* attributes) {
  std::ifstream in(AMUR_FORMAT_DOCUMENT);
  ASSERT_TRUE(in) << AMUR_FORMAT_DOCUMENT;
  bool in_attributes = false;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("## ")) in_attributes = line == "## Attributes";
    if (!line.starts_with("| `/")) continue;
    std::vector<std::string> cells;
    for (size_t at = 1; at < line.size();) {
      const size_t end = line.find('|', at);
      std::string cell;
      for (char c : line.substr(at, end - at))
        if (c != '`') cell += c;
      cell.erase(0, cell.find_first_not_of(' '));
      cell.erase(cell.find_last_not_of(' ') + 1);
      cells.push_back(cell);
      at = end + 1;
    }
    ASSERT_GE(cells.size(), 3u) << line;
    if (in_attributes)
      attributes->insert(cells[0] + " " + cells[1] + " " + cells[2]);
    else
      objects->insert(cells[0]);
  }
}

std::string pattern_of(const std::string& object) {
  std::vector<std::string> steps;
  for (size_t at = 1; at <= object.size();) {
    const size_t end = std::min(object.find('/', at), object.size());
    steps.push_back(object.substr(at, end - at));
    at = end + 1;
  }
  static const std::map<std::string, std::vector<std::string>> kNames = {
      {"model", {"<name>"}},
      {"optimizer", {"<optimizer>", "<slot>", "<name>"}},
      {"tokenizer", {"<kind>"}},
      {"carried", {"<file>"}},
      {"metrics", {"<column>"}}};
  if (const auto it = kNames.find(steps[0]); it != kNames.end())
    for (size_t i = 1; i < steps.size(); ++i) steps[i] = it->second.at(i - 1);
  return fmt::format("/{}", fmt::join(steps, "/"));
}

void walk(const Hdf5File& file, const std::string& object, Rows* objects, Rows* attributes) {
  static const std::map<std::string, std::string> kAttributeNames = {
      {"/best", "<metric>"},
      {"/constants", "<constant>"},
      {"/measured", "<choice>"},
      {"/conditions", "<condition>"}};
  static const char* kTypes[] = {"i64", "u64", "f64", "text", "texts"};
  const std::string pattern = pattern_of(object);
  objects->insert(pattern);
  for (const auto& [name, value] : file.attributes(object)) {
    const auto it = kAttributeNames.find(pattern);
    attributes->insert(pattern + " " + (it == kAttributeNames.end() ? name : it->second) + " " +
                       kTypes[value.index()]);
  }
  if (!file.is_group(object)) return;
  for (const std::string& child : file.children(object))
    walk(file, fmt::format("{}/{}", object == "/" ? "" : object, child), objects, attributes);
}

TEST(FormatDocument, ListsWhatAFileHas) {
  Rows listed_objects, listed_attributes, objects, attributes;
  read_document(&listed_objects, &listed_attributes);
  ProcessGrid grid(test::runtime(), {1, 1});
  const test::ScratchFolder folder;
  test::SmallModel model(grid);
  Checkpoint::save(folder.file("a.h5"), test::example_info(), model.parameters, model.slots(), 0,
                   grid);
  const Hdf5File file(folder.file("a.h5"), Hdf5File::Mode::read);
  walk(file, "/", &objects, &attributes);
  EXPECT_EQ(listed_objects, objects);
  EXPECT_EQ(listed_attributes, attributes);
}

}  // namespace
}  // namespace amur
