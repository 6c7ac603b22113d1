// The rules that keep parts apart, read from the includes of all sources.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "src/core/error.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using ::testing::IsEmpty;

struct Include {
  std::string file;    // "src/train/config/config.cpp"
  std::string header;  // "src/train/config/config.h" or "yaml-cpp/yaml.h"
  bool ours = false;   // in quotes
};

struct Source {
  std::string file;
  size_t lines = 0;
  std::vector<Include> includes;
};

Source read_source(const fs::path& root, const std::string& file) {
  static const std::regex pattern(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  Source source{.file = file, .lines = 0, .includes = {}};
  std::ifstream stream(root / file);
  std::smatch match;
  for (std::string line; std::getline(stream, line); ++source.lines)
    if (std::regex_match(line, match, pattern))
      source.includes.push_back({file, match[2], match[1] == "\""});
  return source;
}

std::vector<Source> read_all(const std::set<std::string>& extensions) {
  const fs::path root = AMUR_SOURCE_DIR;
  std::vector<Source> sources;
  for (const char* top : {"src", "kernels", "comm", "tests", "launch"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !extensions.contains(entry.path().extension())) continue;
      sources.push_back(read_source(root, fs::relative(entry.path(), root)));
    }
  }
  return sources;
}

std::string layer_of(const std::string& file) {
  for (const char* layer :
       {"src/core", "kernels", "comm", "src/model", "src/train", "src/app", "tests"})
    if (file.rfind(std::string(layer) + "/", 0) == 0) return layer;
  return "";
}

// core <- {kernels, comm} <- model <- train <- app; tests see everything.
std::string layer_problem(const Include& include) {
  static const std::map<std::string, std::set<std::string>> sees = {
      {"src/core", {"src/core"}},
      {"kernels", {"src/core", "kernels"}},
      {"comm", {"src/core", "comm"}},
      {"src/model", {"src/core", "kernels", "comm", "src/model"}},
      {"src/train", {"src/core", "kernels", "comm", "src/model", "src/train"}},
      {"src/app", {"src/core", "kernels", "comm", "src/model", "src/train", "src/app"}},
      {"tests", {"src/core", "kernels", "comm", "src/model", "src/train", "src/app", "tests"}},
  };
  if (!include.ours) return "";
  std::string from = layer_of(include.file), to = layer_of(include.header);
  if (to.empty() || !fs::exists(fs::path(AMUR_SOURCE_DIR) / include.header))
    return fmt::format("{} includes \"{}\", which is no path from the repository root",
                       include.file, include.header);
  if (!sees.at(from).contains(to))
    return fmt::format("{} includes {}: {} may not see {}", include.file, include.header, from, to);
  return "";
}

// Where a third-party header may be included (outside tests), and in how many files.
struct Home {
  const char* header;  // as a prefix
  const char* files;   // regular expression
  size_t most;         // files that may include it
};
constexpr size_t kAnyNumber = 1000;
const Home kHomes[] = {
    {"mpi.h", "comm/.*", kAnyNumber},
    {"nccl.h", "comm/.*", 1},
    {"hdf5.h", R"(src/train/checkpoint/hdf5_file\.(h|cpp))", 2},
    {"cblas.h", "kernels/cpu/.*", 1},
    {"dnnl.hpp", "kernels/cpu/.*", 1},
    {"cublasLt.h", "kernels/cuda/.*", 1},
    {"cudnn_graph.h", "kernels/cuda/.*", 1},
    {"cuda", "(kernels/cuda|src/core|comm)/.*", kAnyNumber},
    {"omp.h", "kernels/.*", kAnyNumber},
    {"immintrin.h", "kernels/.*", kAnyNumber},
    {"boost/", "src/app/.*", 1},
    {"yaml-cpp/", "src/train/.*", 1},
    {"sentencepiece_", R"(src/train/data/tokenizer\.cpp)", 1},
    {"unicode/",
     R"(src/train/data/((added_tokens|bert_text|bpe_model|ngram_tokenizer|precompiled_normalizer|utf8)\.cpp|normal_forms\.(h|cpp)))",
     8},
    {"zlib.h", "src/train/.*", 1},
    {"nlohmann/", "src/(train|app)/.*", kAnyNumber},
    {"fmt/", ".*", kAnyNumber},
};

const Home* home_of(const std::string& header) {
  for (const Home& home : kHomes)
    if (header.rfind(home.header, 0) == 0) return &home;
  return nullptr;
}

// Headers of C++ have neither a dot nor a slash; those of the operating system are named here.
bool is_system_header(const std::string& header) {
  static const std::set<std::string> posix = {
      "arpa/inet.h", "dirent.h",      "dlfcn.h",       "fcntl.h",        "netdb.h",
      "malloc.h",    "netinet/in.h",  "poll.h",        "pthread.h",      "sched.h",
      "signal.h",    "sys/file.h",    "sys/mman.h",    "sys/resource.h", "sys/socket.h",
      "sys/stat.h",  "sys/statvfs.h", "sys/syscall.h", "sys/time.h",     "sys/types.h",
      "sys/wait.h",  "termios.h",     "unistd.h"};
  return header.find_first_of("./") == std::string::npos || posix.contains(header);
}

std::string home_problem(const Include& include) {
  if (include.ours || is_system_header(include.header) || layer_of(include.file) == "tests")
    return "";
  const Home* home = home_of(include.header);
  if (!home)
    return fmt::format("{} includes <{}>, which has no home in this test", include.file,
                       include.header);
  if (!std::regex_match(include.file, std::regex(home->files)))
    return fmt::format("{} includes <{}>, whose home is {}", include.file, include.header,
                       home->files);
  return "";
}

const std::set<std::string> kCode = {".h", ".cpp", ".cu", ".cuh"};

TEST(Architecture, LayersSeeOnlyWhatLiesBelow) {
  std::vector<std::string> problems;
  size_t seen = 0;
  for (const Source& source : read_all(kCode)) {
    for (const Include& include : source.includes) {
      seen += include.ours;
      if (std::string text = layer_problem(include); !text.empty()) problems.push_back(text);
    }
  }
  EXPECT_GT(seen, 100u);
  EXPECT_THAT(problems, IsEmpty());
}

TEST(Architecture, LayerRuleCatchesViolations) {
  EXPECT_EQ(layer_problem({"src/train/data/data.h", "kernels/gemm.h", true}), "");
  EXPECT_NE(layer_problem({"kernels/gemm.h", "comm/runtime.h", true}), "");
  EXPECT_NE(layer_problem({"comm/runtime.h", "kernels/gemm.h", true}), "");
  EXPECT_NE(layer_problem({"src/core/log.h", "kernels/gemm.h", true}), "");
  EXPECT_NE(layer_problem({"src/model/encoder.h", "src/train/config/config.h", true}), "");
  EXPECT_NE(layer_problem({"src/train/data/data.h", "src/app/commands.h", true}), "");
  EXPECT_NE(layer_problem({"src/app/main.cpp", "commands.h", true}), "");
}

TEST(Architecture, ThirdPartyHeadersStayAtHome) {
  std::vector<std::string> problems;
  std::map<std::string, std::set<std::string>> users;
  for (const Source& source : read_all(kCode)) {
    for (const Include& include : source.includes) {
      if (std::string text = home_problem(include); !text.empty()) problems.push_back(text);
      const Home* home =
          include.ours || layer_of(source.file) == "tests" ? nullptr : home_of(include.header);
      if (home) users[home->header].insert(source.file);
    }
  }
  EXPECT_THAT(problems, IsEmpty());
  for (const Home& home : kHomes)
    EXPECT_LE(users[home.header].size(), home.most)
        << home.header << ": " << ::testing::PrintToString(users[home.header]);
}

TEST(Architecture, HomeRuleCatchesViolations) {
  EXPECT_EQ(home_problem({"comm/runtime.cpp", "mpi.h", false}), "");
  EXPECT_EQ(home_problem({"src/train/data/data.cpp", "sys/stat.h", false}), "");
  EXPECT_NE(home_problem({"src/train/data/data.cpp", "mpi.h", false}), "");
  EXPECT_NE(home_problem({"src/train/checkpoint/checkpoint.cpp", "hdf5.h", false}), "");
  EXPECT_NE(home_problem({"src/train/data/data.cpp", "boost/program_options.hpp", false}), "");
  EXPECT_NE(home_problem({"src/train/data/data.cpp", "stranger/library.h", false}), "");
}

TEST(Architecture, FilesStayShort) {
  std::vector<std::string> problems;
  for (const Source& source : read_all({".h", ".cpp", ".cu", ".cuh", ".sh", ".cmake"}))
    if (source.lines > 600)
      problems.push_back(fmt::format("{} has {} lines; split it", source.file, source.lines));
  EXPECT_THAT(problems, IsEmpty());
}

}  // namespace
}  // namespace amur
