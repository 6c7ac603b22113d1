// Users' files: formats, malformed lines, the index and its cache.
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>

#include "src/core/error.h"
#include "src/train/data/line_format.h"
#include "src/train/data/line_source.h"
#include "src/train/data/sample_index.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::ScratchFolder;
using test::small_tsv;
using Texts = std::vector<std::string>;

std::string reason(SourceFormat format, std::string_view line) {
  RawSample sample;
  return parse_line(format, line, sample);
}

RawSample parsed(SourceFormat format, std::string_view line) {
  RawSample sample;
  EXPECT_EQ(parse_line(format, line, sample), "");
  return sample;
}

std::string write_gzip(const ScratchFolder& folder, const std::string& name,
                       std::string_view content) {
  const std::string path = folder.path(name);
  gzFile file = gzopen(path.c_str(), "wb");
  EXPECT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())),
            static_cast<int>(content.size()));
  EXPECT_EQ(gzclose(file), Z_OK);
  return path;
}

std::vector<RawSample> samples_of(const PairSource& source) {
  std::vector<RawSample> samples;
  for (int64_t i = 0; i < source.samples(); ++i) samples.push_back(source.sample(i));
  return samples;
}

Texts queries_of(const PairSource& source) {
  Texts queries;
  for (const RawSample& sample : samples_of(source)) queries.push_back(sample.query);
  return queries;
}

class Lines : public ::testing::Test {
 protected:
  Lines() { config_.eval_share = 0; }

  // Of a file in memory, or with `cached` through files in the cache.
  std::unique_ptr<PairSource> open(const std::string& path, bool cached = false,
                                   SourceFormat format = SourceFormat::tsv) {
    source_.format = format;
    source_.path = path;
    cache_ = prepare_line_source(source_, config_, cached ? 0 : int64_t{1} << 40);
    return open_line_source(source_, config_, LineCache::unpacked(cache_.packed()));
  }

  ScratchFolder folder_;
  DataConfig config_;
  SourceConfig source_;
  LineCache cache_;
};

TEST(ParseTsv, TakesNegativesAndTrims) {
  const RawSample sample = parsed(SourceFormat::tsv, " a b \tc\t\t d\te ");
  EXPECT_EQ(sample.query, "a b");
  EXPECT_EQ(sample.positives, Texts{"c"});
  EXPECT_EQ(sample.negatives, (Texts{"d", "e"}));
}

TEST(ParseTsv, NamesWhatIsWrong) {
  EXPECT_EQ(reason(SourceFormat::tsv, "only one"), "no tab between query and document");
  EXPECT_EQ(reason(SourceFormat::tsv, " \tb"), "the query is empty");
  EXPECT_EQ(reason(SourceFormat::tsv, "a\t \tn"), "the document is empty");
  EXPECT_EQ(reason(SourceFormat::tsv, "a\tb\xFF"), "not UTF-8");
}

TEST(ParseJsonl, TakesBothFormsAndTabsInTexts) {
  RawSample sample =
      parsed(SourceFormat::jsonl, R"({"query":"a\tb","pos":["c","d"],"neg":["e"],"id":7})");
  EXPECT_EQ(sample.query, "a\tb");
  EXPECT_EQ(sample.positives, (Texts{"c", "d"}));
  EXPECT_EQ(sample.negatives, Texts{"e"});
  sample = parsed(SourceFormat::jsonl, R"({"anchor":"a","positive":"\u00e4\n","negative":"n"})");
  EXPECT_EQ(sample.positives, Texts{"\u00e4"});
  EXPECT_EQ(sample.negatives, Texts{"n"});
  EXPECT_TRUE(
      parsed(SourceFormat::jsonl, R"({"query":"a","pos":"b","neg":null})").negatives.empty());
  // A tab that is not escaped is no JSON.
  EXPECT_EQ(reason(SourceFormat::jsonl, "{\"query\":\"a\tb\",\"pos\":[\"c\"]}"),
            "not a JSON object");
}

TEST(ParseJsonl, NamesWhatIsWrong) {
  const auto why = [](const char* line) { return reason(SourceFormat::jsonl, line); };
  EXPECT_EQ(why("[1]"), "not a JSON object");
  EXPECT_EQ(why("{\"query\": \"a\""), "not a JSON object");
  EXPECT_EQ(why(R"({"pos":["b"]})"), "neither \"query\" nor \"anchor\"");
  EXPECT_EQ(why(R"({"query":"a"})"), "neither \"pos\" nor \"positive\"");
  EXPECT_EQ(why(R"({"query":3,"pos":["b"]})"), "the query is not a text");
  EXPECT_EQ(why(R"({"query":" ","pos":["b"]})"), "the query is empty");
  EXPECT_EQ(why(R"({"query":"a","pos":[]})"), "no positives");
  EXPECT_EQ(why(R"({"query":"a","pos":["b",""]})"), "a text of \"pos\" is empty");
  EXPECT_EQ(why(R"({"query":"a","pos":["b"],"neg":[1]})"),
            "\"neg\" is neither a text nor a list of texts");
}

TEST(Utf8, AcceptsWellFormedOnly) {
  for (const char* text : {"", "a", "\u00e4", "\u20ac", "\U0001F405", "\xEF\xBF\xBF"})
    EXPECT_TRUE(is_utf8(text)) << text;
  for (const char* text : {"\x80", "\xC3", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80",
                           "\xF0\x9F\x90", "\xF4\x90\x80\x80", "\xFF", "a\xE2\x82"})
    EXPECT_FALSE(is_utf8(text));
}

TEST_F(Lines, ReadsCrlfByteOrderMarkBlankLinesAndNoFinalNewline) {
  const auto source = open(folder_.write("a.tsv",
                                         "\xEF\xBB\xBF"
                                         "a\tb\r\n\r\n \t \n\nc\td\r\ne\tf"));
  ASSERT_EQ(source->samples(), 3);
  EXPECT_EQ(queries_of(*source), (Texts{"a", "c", "e"}));
  EXPECT_EQ(source->sample(1).positives, Texts{"d"});
  EXPECT_EQ(source->sample(2).positives, Texts{"f"});
}

TEST_F(Lines, ReadsALineOfAMegabyteAndOneTooLongForItsEntry) {
  const std::string megabyte(1 << 20, 'x'), longer(20 << 20, 'y');
  for (const bool cached : {false, true}) {
    const auto source =
        open(folder_.write("a.tsv", "a\t" + megabyte + "\nb\t" + longer + "\r\nc\td\n"), cached);
    ASSERT_EQ(source->samples(), 3);
    EXPECT_EQ(source->sample(0).positives[0], megabyte);
    EXPECT_EQ(source->sample(1).positives[0], longer);
    EXPECT_EQ(source->sample(2).positives[0], "d");
  }
}

TEST_F(Lines, MalformedLinesAreRefusedByNameOrSkippedAndCounted) {
  std::string content = "a\tb\nbad 1\n\nc\t\nd\te\n";
  for (int i = 0; i < 10; ++i) content += "bad\n";
  for (const bool cached : {false, true}) {
    const std::string path = folder_.write("m.tsv", content);
    config_.malformed = MalformedPolicy::refuse;
    try {
      open(path, cached);
      FAIL() << "malformed lines were accepted";
    } catch (const UsageError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("12 malformed lines"), std::string::npos) << text;
      EXPECT_NE(text.find(path + ":2: no tab"), std::string::npos) << text;
      EXPECT_NE(text.find(path + ":4: the document is empty"), std::string::npos) << text;
      EXPECT_EQ(text.find(path + ":9:"), std::string::npos) << "more than the first few";
      EXPECT_NE(text.find("data.malformed"), std::string::npos);
    }
    config_.malformed = MalformedPolicy::skip;
    const auto source = open(path, cached);
    EXPECT_EQ(queries_of(*source), (Texts{"a", "d"}));
    EXPECT_NE(source->report().find("12 malformed lines skipped"), std::string::npos);
  }
}

TEST_F(Lines, AFileWithoutPairsAFolderAndAMissingFileAreRefused) {
  EXPECT_THROW(open(folder_.write("e.tsv", "")), UsageError);
  EXPECT_THROW(open(folder_.write("n.tsv", "\n\n")), UsageError);
  EXPECT_THROW(open(folder_.path("")), UsageError);
  EXPECT_THROW(open(folder_.path("missing.tsv")), IoError);
}

TEST_F(Lines, TheHeldOutShareFollowsTheQuery) {
  std::string content = small_tsv(4000);
  for (int i = 0; i < 4000; ++i) content += fmt::format("query {}\tsecond document {}\n", i, i);
  config_.eval_share = 0.1;
  const auto source = open(folder_.write("a.tsv", content));
  const auto held_out = source->evaluation();
  EXPECT_EQ(source->samples() + static_cast<int64_t>(held_out.size()), 8000);
  EXPECT_NEAR(static_cast<double>(held_out.size()) / 8000, 0.1, 0.02);
  std::set<std::string> evaluated;
  for (const EvalPair& pair : held_out) evaluated.insert(pair.query);
  for (const std::string& query : queries_of(*source)) EXPECT_FALSE(evaluated.contains(query));
  // A file of its own for evaluation: nothing is held out.
  source_.eval_path = folder_.write("eval.tsv", "q\td\nr\te\tn\n");
  const auto all = open(folder_.path("a.tsv"));
  EXPECT_EQ(all->samples(), 8000);
  ASSERT_EQ(all->evaluation().size(), 2u);
  EXPECT_EQ(all->evaluation()[1].document, "e");
  EXPECT_EQ(all->files().size(), 2u);
}

TEST_F(Lines, ThroughTheCacheNothingChanges) {
  const std::string content = small_tsv(500);
  const std::string plain = folder_.write("a.tsv", content);
  const std::string zipped = write_gzip(folder_, "z.tsv.gz", content);
  config_.eval_share = 0.1;
  const auto expected = open(plain);
  for (const std::string& path : {plain, zipped})
    for (const bool cached : {false, true}) {
      const auto source = open(path, cached);
      EXPECT_EQ(cache_.index.empty(), !cached);
      ASSERT_EQ(source->samples(), expected->samples());
      ASSERT_EQ(source->evaluation().size(), expected->evaluation().size());
      for (int64_t i = 0; i < source->samples(); ++i) {
        ASSERT_EQ(source->sample(i).query, expected->sample(i).query);
        ASSERT_EQ(source->sample(i).positives, expected->sample(i).positives);
        ASSERT_EQ(source->text_bytes(i), expected->text_bytes(i));
        if (i % 100 == 0) source->release();  // reads go on after pages were given back
      }
    }
}

TEST_F(Lines, TheCacheIsReusedAndMadeAnewWhenTheFileChanges) {
  const std::string path = folder_.write("a.tsv", small_tsv(100));
  open(path, true);
  const Texts names = folder_.names();
  ASSERT_EQ(names.size(), 2u);  // no temporary file stays behind
  const auto made = std::filesystem::last_write_time(cache_.index);
  open(path, true);
  EXPECT_EQ(std::filesystem::last_write_time(cache_.index), made);
  EXPECT_EQ(folder_.names(), names);

  folder_.write("a.tsv", small_tsv(101));
  EXPECT_EQ(open(path, true)->samples(), 101);
  // The same size and another content.
  std::string other = small_tsv(101);
  other[other.size() / 2] = 'Q';
  folder_.write("a.tsv", other);
  std::filesystem::last_write_time(path, made + std::chrono::hours(1));
  EXPECT_EQ(open(path, true)->samples(), 101);
  EXPECT_NE(std::filesystem::last_write_time(cache_.index), made);
}

TEST_F(Lines, ADamagedIndexIsMadeAnew) {
  const std::string path = folder_.write("a.tsv", small_tsv(100));
  open(path, true);
  const std::string index = cache_.index;
  const std::string good = test::read_file(index);
  for (std::string bad : {std::string(), good.substr(0, 20), good.substr(0, good.size() - 8),
                          std::string(good).replace(16, 1, "\x7f")}) {
    std::ofstream(index, std::ios::binary) << bad;
    EXPECT_EQ(open(path, true)->samples(), 100);
    EXPECT_EQ(test::read_file(index), good);
  }
}

TEST_F(Lines, TheCacheFolderIsUsedAndAnUnwritableOneLeftForTheTemporaryOne) {
  const std::string path = folder_.write("a.tsv", small_tsv(100));
  config_.cache_dir = folder_.path("cache");
  open(path, true);
  EXPECT_TRUE(cache_.index.starts_with(config_.cache_dir));
  EXPECT_EQ(folder_.names(), (Texts{"a.tsv", "cache"}));
  // Nobody, not even the superuser, can make a file in a folder that is a file.
  config_.cache_dir = folder_.write("not-a-folder", "");
  EXPECT_EQ(open(path, true)->samples(), 100);
  EXPECT_NE(cache_.index.find("amur-cache-"), std::string::npos) << cache_.index;
  std::filesystem::remove(cache_.index);
}

TEST_F(Lines, ACutGzipFileIsRefused) {
  const std::string path = write_gzip(folder_, "z.tsv.gz", small_tsv(2000));
  const std::string whole = test::read_file(path);
  folder_.write("z.tsv.gz", whole.substr(0, whole.size() / 2));
  for (const bool cached : {false, true}) EXPECT_THROW(open(path, cached), IoError);
  EXPECT_EQ(folder_.names(), Texts{"z.tsv.gz"});  // nothing partly written stays
}

Texts read_lines_of(const std::string& path) {
  LineReader reader(path);
  Texts lines;
  for (std::string line; reader.next(line);) lines.push_back(line);
  return lines;
}

TEST_F(Lines, AReaderGivesLinesFromFrontToBack) {
  const std::string longer(3 << 20, 'x');  // than its buffer
  const std::string content = "\xEF\xBB\xBFone\r\n\n" + longer + "\nlast\r";
  const Texts want = {"one", "", longer, "last"};
  EXPECT_EQ(read_lines_of(folder_.write("a.txt", content)), want);
  const std::string zipped = write_gzip(folder_, "a.txt.gz", content);
  EXPECT_EQ(read_lines_of(zipped), want);
  EXPECT_EQ(read_lines_of(folder_.write("b.txt", "end\n")), Texts{"end"});
  EXPECT_EQ(read_lines_of(folder_.write("b.txt", "")), Texts{});
  EXPECT_EQ(read_lines_of(folder_.write("b.txt", "\n\n")), (Texts{"", ""}));

  std::string line;
  LineReader whole(zipped);
  while (whole.next(line)) EXPECT_TRUE(whole.ready(0));
  EXPECT_DOUBLE_EQ(whole.share_read(), 1);
  const std::string bytes = test::read_file(zipped);
  folder_.write("a.txt.gz", bytes.substr(0, bytes.size() - 20));
  EXPECT_THROW(read_lines_of(zipped), IoError);
  EXPECT_THROW(read_lines_of(folder_.path("absent")), IoError);
  EXPECT_THROW(read_lines_of(folder_.path("")), IoError);
}

TEST_F(Lines, TheFingerprintSeesAChangeOfContent) {
  std::string content = small_tsv(100);
  const FileStamp before = stamp_of(folder_.write("a.tsv", content));
  EXPECT_EQ(stamp_of(folder_.write("a.tsv", content)).sampled, before.sampled);
  content[100] = '#';
  const FileStamp after = stamp_of(folder_.write("a.tsv", content));
  EXPECT_EQ(after.size, before.size);
  EXPECT_NE(after.sampled, before.sampled);
}

}  // namespace
}  // namespace amur
