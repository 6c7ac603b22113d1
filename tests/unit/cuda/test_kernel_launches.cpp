// Every launch of the CUDA kernels, for the shapes of every recipe in configs/, against what the
// devices take. Registers and fixed shared memory are test_device_code.py's.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "kernels/cuda/launch.h"
#include "kernels/elementwise.h"
#include "src/train/budgets.h"
#include "src/train/config/config.h"
#include "tests/unit/cuda/minilm.h"

namespace amur::cuda {
namespace {

// CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
constexpr int64_t kMostX = std::numeric_limits<int32_t>::max(), kMostY = 65535;
constexpr int kMostThreads = 1024;
constexpr size_t kSharedMemory[] = {163 << 10, 99 << 10, 227 << 10};  // 8.0; 8.6, 8.9, 12; 9.0, 10

struct Launch {
  std::string what;
  int64_t x, y = 1;
  int threads = kThreads;
  size_t shared = 0;
};

std::string problem_of(const Launch& l) {
  if (l.x < 1 || l.x > kMostX || l.y < 1 || l.y > kMostY)
    return fmt::format("{}: {} x {} blocks", l.what, l.x, l.y);
  if (l.threads < 1 || l.threads > kMostThreads || l.threads % 32 != 0)
    return fmt::format("{}: {} threads", l.what, l.threads);
  for (const size_t most : kSharedMemory)
    if (l.shared > most) return fmt::format("{}: {} bytes of shared memory", l.what, l.shared);
  return "";
}

template <class A, int width>
void add_attention(std::vector<Launch>& all, int64_t tokens, int64_t sequences, int64_t heads) {
  using Tile = AttentionTile<A, width>;
  const int64_t tiles = tiles_for(tokens, sequences, Tile::kRows);
  for (const size_t bytes : {Tile::kForwardBytes, Tile::kQueriesBytes, Tile::kKeysBytes})
    all.push_back({fmt::format("attention of width {}", width), tiles, heads, kTileThreads, bytes});
}

template <int width>
void add_tensor_cores(std::vector<Launch>& all, int64_t tokens, int64_t sequences, int64_t longest,
                      int64_t heads) {
  for (const AttentionPass pass : {AttentionPass::forward, AttentionPass::whole,
                                   AttentionPass::queries, AttentionPass::keys}) {
    const TensorCoreLaunch l = tensor_core_launch<width>(pass, tokens, sequences, longest, heads);
    all.push_back(
        {fmt::format("attention in bf16 of width {}", width), l.blocks, 1, l.warps * 32, l.bytes});
  }
}

// What a chunk of so many tokens and texts launches, and what the loss and the update do.
std::vector<Launch> launches_of(const Config& c, int64_t tokens, int64_t sequences) {
  const ModelConfig& m = c.model;
  const int64_t head = m.layers > 0 ? m.resolved_head_size() : 1, ffn = m.resolved_ffn();
  std::vector<Launch> all;
  for (const int64_t width : {m.hidden, 3 * m.hidden, 2 * ffn, m.embedding_size()}) {
    all.push_back({"elements", blocks_for(tokens * width)});
    for (const int pack : {1, 2, 4, 8})
      all.push_back({"columns", panels_of_columns(width, pack), row_blocks(tokens)});
    all.push_back({"sums of columns", blocks_for_columns(width), kMostParts});
    all.push_back({"runs of rows", blocks_for_runs(tokens, kThreads / 32)});
    all.push_back({"sums over rows", blocks_for_runs(tokens, kSumWarps, kMostPartialBlocks), 1,
                   kSumThreads, 2 * kHeldRow * sizeof(double)});
  }
  for (const int64_t rows : {tokens, sequences, m.vocab, m.max_length, c.train.batch_size})
    all.push_back({"rows", blocks_for_each(rows)});
  const OrderLaunch order = order_launch(tokens, m.vocab);
  all.push_back({"order", order.low_blocks, 1, order.threads});
  all.push_back({"order", order.high_blocks, 1, order.threads});
  for (const int64_t rows : {sequences, m.max_length})
    all.push_back({"rows in turn", blocks_for_each(tokens), blocks_across(m.embedding_size(), 1),
                   threads_for_sum(rows)});
  // Whatever tile sizes are configured.
  all.push_back({"logits", panels_across(1 << 20), panels_down(1 << 20)});
  if (m.layers == 0) return all;
  EXPECT_LE(head, kWidestHead);
  add_attention<float, 32>(all, tokens, sequences, m.heads);
  add_attention<float, 64>(all, tokens, sequences, m.heads);
  add_attention<float, kWidestHead>(all, tokens, sequences, m.heads);
  add_attention<double, kWidestHead>(all, tokens, sequences, m.heads);
  const int64_t longest = std::min(m.max_length, tokens - sequences + 1);
  add_tensor_cores<32>(all, tokens, sequences, longest, m.heads);
  add_tensor_cores<64>(all, tokens, sequences, longest, m.heads);
  add_tensor_cores<kWidestHead>(all, tokens, sequences, longest, m.heads);
  return all;
}

TEST(KernelLaunches, EveryRecipeFitsEveryDevice) {
  int recipes = 0;
  for (const auto& file : std::filesystem::directory_iterator(AMUR_SOURCE_DIR "/configs")) {
    Config config = load_config(file.path(), {}, test::minilm);
    config.model.vocab = config.data.vocab_size;
    std::vector<Config> stages = {config};
    for (const RunGrowth& growth : config.train.growth) {
      Config grown = stages.back();
      const GrowthOptions& to = growth.options;
      for (const auto& [size, value] : {std::pair(&grown.model.hidden, to.hidden),
                                        {&grown.model.heads, to.heads},
                                        {&grown.model.head_size, to.head_size},
                                        {&grown.model.ffn, to.ffn},
                                        {&grown.model.layers, to.layers}})
        if (value > 0) *size = value;
      stages.push_back(grown);
    }
    for (const Config& stage : stages) {
      // One token; one text; as many tokens as a chunk ever has, as one text or as many.
      const int64_t chunk =
          stage.train.chunk_tokens > 0 ? stage.train.chunk_tokens : kLargestAutoChunk;
      const int64_t most = std::max(chunk, stage.model.max_length);
      for (const auto& [tokens, sequences] : {std::pair<int64_t, int64_t>{1, 1},
                                              {stage.model.max_length, 1},
                                              {most, 1},
                                              {most, most}})
        for (const Launch& l : launches_of(stage, tokens, sequences))
          EXPECT_EQ(problem_of(l), "") << file.path() << ", " << tokens << " tokens";
    }
    ++recipes;
  }
  EXPECT_GE(recipes, 8);
}

// Whatever the lengths are, every row has a block: as each sequence has as many tiles as the
// longest, or as tiles_for counts, whichever are fewer.
TEST(KernelLaunches, AttentionOfEveryLength) {
  for (int64_t longest = 1; longest <= 65535; longest += longest < 600 ? 1 : 997) {
    for (const int64_t sequences : {1, 3, 1000}) {
      for (const int64_t tokens : {longest + sequences - 1, longest * sequences}) {
        std::vector<Launch> all;
        add_tensor_cores<32>(all, tokens, sequences, longest, 12);
        add_tensor_cores<64>(all, tokens, sequences, longest, 12);
        add_tensor_cores<kWidestHead>(all, tokens, sequences, longest, 12);
        for (const Launch& l : all)
          ASSERT_EQ(problem_of(l), "") << longest << " of " << tokens << " tokens";
        const TensorCoreLaunch whole =
            tensor_core_launch<64>(AttentionPass::whole, tokens, sequences, longest, 1);
        ASSERT_EQ(whole.blocks, sequences);
        ASSERT_GE(whole.warps * kWarpRows,
                  std::min<int64_t>(longest, TensorCoreTile<64>::kWholeText));
        for (const AttentionPass pass : {AttentionPass::forward, AttentionPass::queries}) {
          const TensorCoreLaunch l = tensor_core_launch<64>(pass, tokens, sequences, longest, 1);
          const int64_t rows = l.warps * kWarpRows;
          ASSERT_LE(l.blocks, tiles_for(tokens, sequences, rows));
          ASSERT_GE(l.blocks * rows, tokens);
          // What the passes of attention_bf16.cu rely on.
          ASSERT_LE(l.others, l.warps * 32);
          ASSERT_TRUE(l.stages == 2 || longest <= l.others);
          ASSERT_TRUE(pass != AttentionPass::queries || rows <= 2 * l.others);
        }
      }
    }
  }
}

// Far beyond any recipe.
TEST(KernelLaunches, NoSizeIsTooLarge) {
  constexpr int64_t kHuge = int64_t{1} << 60;
  for (const int64_t n : {int64_t{1}, int64_t{255}, int64_t{256}, int64_t{257}, kHuge}) {
    EXPECT_EQ(problem_of({"elements", blocks_for(n)}), "") << n;
    EXPECT_EQ(problem_of({"rows", blocks_for_each(n)}), "") << n;
    EXPECT_EQ(problem_of({"sums", 1, row_blocks(n)}), "") << n;
    EXPECT_GE(rows_of_block(n) * row_blocks(n), n);
    EXPECT_EQ(problem_of({"runs", blocks_for_runs(n, 8)}), "") << n;
  }
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{30522}, kMostX}) {
    for (const int64_t tokens : {int64_t{1}, int64_t{257}, kMostX}) {
      const OrderLaunch l = order_launch(tokens, rows);
      EXPECT_EQ(problem_of({"order", l.low_blocks, 1, l.threads}), "") << rows;
      EXPECT_EQ(problem_of({"order", l.high_blocks, 1, l.threads}), "") << rows;
      // A block for every digit of 0 .. rows.
      EXPECT_EQ(l.low_blocks, 1u << l.low_bits);
      EXPECT_EQ(l.high_blocks, (rows >> l.low_bits) + 1);
    }
  }
  for (const int64_t columns : {1, 32, 33, 1 << 30}) {
    EXPECT_GE(int64_t{blocks_for_columns(columns)} * kColumnsOfTile, columns);
    EXPECT_GE(int64_t{panels_of_columns(columns, 8)} * 32 * 8, columns);
  }
}

TEST(KernelLaunches, ExcessIsSeen) {
  for (const Launch& l : {Launch{"x", kMostX + 1},
                          {"none", 0},
                          {"y", 1, kMostY + 1},
                          {"threads", 1, 1, 1056},
                          {"half a warp", 1, 1, 48},
                          {"memory", 1, 1, 256, (99 << 10) + 1}})
    EXPECT_NE(problem_of(l), "") << l.what;
}

}  // namespace
}  // namespace amur::cuda
