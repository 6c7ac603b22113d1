// The Debian packages as pairs: their splits are fixed by check sums over every row.
#include <array>

#include "src/core/error.h"
#include "src/train/data/package_source.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::ScratchFolder;
using test::sha256;

std::string written_out(const PackageSource& source) {
  constexpr std::array<const char*, 3> kNames = {"train", "val", "test"};
  std::string text;
  source.rows([&](const PackageSource::Row& row) {
    text += fmt::format("{}\t{}\t{}\n", kNames[static_cast<size_t>(row.split)], row.query,
                        row.document);
  });
  return text;
}

std::array<int64_t, 3> split_sizes(const PackageSource& source) {
  std::array<int64_t, 3> sizes{};
  source.rows([&](const PackageSource::Row& row) { ++sizes[static_cast<size_t>(row.split)]; });
  return sizes;
}

TEST(Sha256, KnownValue) {
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_NE(sha256("abd"), sha256("abc"));
}

TEST(TransDeEn, RowsAreTheDocumentedSplit) {
  const auto source = open_trans_de_en({}, Split::test);
  // Debian 12, version 1.9-6.
  ASSERT_EQ(sha256(test::read_file("/usr/share/trans/de-en")),
            "34052c6021d09eadfee7a893a789204265954df70fe9c36d38fa00058d79d326");
  EXPECT_EQ(sha256(written_out(*source)),
            "6022ec5ec2fc1043e97829ce99e0d32147755a2b8c5c19695d532a8914620683");
  EXPECT_EQ(split_sizes(*source), (std::array<int64_t, 3>{347925, 18971, 19388}));
  EXPECT_EQ(source->samples(), 347925);
  EXPECT_EQ(source->evaluation().size(), 13302u);
  EXPECT_EQ(open_trans_de_en({}, Split::val)->evaluation().size(), 12996u);
}

TEST(TransDeEn, SamplesAreTheTrainingRowsInOrder) {
  for (const bool all : {false, true}) {
    SourceConfig config;
    config.all_alternatives = all;
    const auto source = open_trans_de_en(config, Split::test);
    int64_t i = 0, mismatches = 0, positives = 0;
    const auto compare = [&](const RawSample& sample) {
      mismatches += sample.positives.empty();
      positives += static_cast<int64_t>(sample.positives.size());
      for (const std::string& document : sample.positives)
        mismatches += folded(document) == folded(sample.query);
    };
    if (all) {
      for (; i < source->samples(); ++i) compare(source->sample(i));
      EXPECT_GT(source->samples(), 347925);
      EXPECT_GT(positives, 700000);
    } else {
      source->rows([&](const PackageSource::Row& row) {
        if (row.split != Split::train) return;
        const RawSample sample = source->sample(i);
        compare(sample);
        mismatches += sample.query != row.query || sample.positives.front() != row.document;
        mismatches +=
            source->text_bytes(i) != static_cast<int64_t>(row.query.size() + row.document.size());
        ++i;
      });
      EXPECT_EQ(positives, i);
    }
    EXPECT_EQ(i, source->samples());
    EXPECT_EQ(mismatches, 0);
  }
}

TEST(TransDeEn, AnEntryGivesGroupsAndAlternatives) {
  const ScratchFolder folder;
  SourceConfig config;
  config.path = folder.write(
      "de-en",
      "# Haus :: house\n"
      "no separator\n"
      "Haus {n} [arch.]; Gebäude {n} | Häuser {pl} ; :: (big)  house; building; Haus | houses\n"
      "Taxi {n} :: taxi\n"         // equal sides
      "a | b :: only one group\n"  // groups disagree
      "{m} :: nothing left\n");
  config.all_alternatives = true;
  const auto source = open_trans_de_en(config, Split::test);
  std::vector<std::string> rows;
  source->rows(
      [&](const PackageSource::Row& row) { rows.push_back(row.query + "=" + row.document); });
  EXPECT_EQ(rows, (std::vector<std::string>{"Haus=house", "Häuser=houses"}));
  ASSERT_EQ(source->samples(), 3);
  EXPECT_EQ(source->sample(0).query, "Haus");
  EXPECT_EQ(source->sample(0).positives, (std::vector<std::string>{"house", "building"}));
  EXPECT_EQ(source->sample(1).query, "Gebäude");
  EXPECT_EQ(source->sample(1).positives, (std::vector<std::string>{"house", "building", "Haus"}));
  EXPECT_EQ(source->sample(2).query, "Häuser");
}

TEST(TransDeEn, NamesAMissingFileAndRefusesAnother) {
  SourceConfig config;
  config.path = "/nowhere/de-en";
  try {
    open_trans_de_en(config, Split::test);
    FAIL() << "a missing file was opened";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("/nowhere/de-en"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("Debian package trans-de-en"), std::string::npos);
  }
  const ScratchFolder folder;
  config.path = folder.write("other.txt", "this is no dictionary\n");
  EXPECT_THROW(open_trans_de_en(config, Split::test), UsageError);
}

TEST(WordNet, RowsAreTheDocumentedSplit) {
  const auto source = open_wordnet({}, Split::test);
  EXPECT_EQ(sha256(written_out(*source)),
            "a394433032be5dd4c90824e787b3f4eb94eaf36fecc7c6cb7fd1a04b32b83961");
  EXPECT_EQ(source->samples(), 105781);
  int64_t i = 0, mismatches = 0;
  source->rows([&](const PackageSource::Row& row) {
    if (row.split != Split::train) return;
    const RawSample sample = source->sample(i++);
    mismatches += sample.query != row.query || sample.positives.front() != row.document;
  });
  EXPECT_EQ(i, source->samples());
  EXPECT_EQ(mismatches, 0);
}

TEST(WordNet, RefusesAFolderOfSomethingElse) {
  const ScratchFolder folder;
  for (const char* name : {"data.noun", "data.verb", "data.adj", "data.adv"})
    folder.write(name, "not a WordNet line at all\n");
  SourceConfig config;
  config.path = folder.path("");
  EXPECT_THROW(open_wordnet(config, Split::test), UsageError);
}

}  // namespace
}  // namespace amur
