#include "src/train/product_choices.h"

#include <algorithm>
#include <set>

#include "comm/runtime.h"
#include "src/core/choices.h"
#include "src/core/device_backend.h"
#include "src/core/log.h"
#include "src/model/linear.h"
#include "src/train/budgets.h"
#include "src/train/stopwatch.h"

namespace amur {
namespace {

constexpr int64_t kLeastShare = 8;  // of a full chunk

// The products of all ranks, whose shares of heads may differ in size.
std::vector<Product> of_all_ranks(const std::vector<Product>& products, Communicator& world) {
  std::string mine;
  for (const Product& product : products) mine += to_text(product) + "\n";
  std::set<Product> all;
  for (const std::string& text : world.gather(mine)) {
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      const std::optional<Product> product = parse_product(text.substr(at, end - at));
      AMUR_CHECK(product, "'{}' as a product", text.substr(at, end - at));
      all.insert(*product);
      at = end + 1;
    }
  }
  return {all.begin(), all.end()};
}

void measure(const std::vector<Product>& products, Device device) {
  Stopwatch watch;
  Log::progress("measuring the products of model and loss");
  try {
    const auto chosen = measure_products(products, choices().entries(), device);
    for (const auto& [name, algorithm] : chosen) choices().record(name, algorithm);
    if (!chosen.empty())
      Log::info("{} products were measured in {:.1f} s: their algorithms stand in choices.json",
                chosen.size(), watch.elapsed());
  } catch (const MemoryError& error) {
    Log::warn("the algorithms of products cannot be measured: {}; the library's first are taken",
              error.what());
  }
  Log::progress("");
}

void add_loss_products(const Config& config, const EmbeddingModel& model, int dp,
                       std::vector<Product>& list) {
  LossExtent extent = loss_extent(config, model, dp);
  const auto add = [&] {
    const auto more = contrastive_loss_products(config.loss, extent, model.device());
    list.insert(list.end(), more.begin(), more.end());
  };
  add();
  if (dp == 1) return;
  // Ranks have equal bytes of text, some of them a few rows more, and so perhaps the next bucket.
  extent.queries += extent.queries / 64 + 1;
  extent.documents += extent.documents / 64 + 1;
  add();
}

}  // namespace

std::vector<Product> products_of(EmbeddingModel& model, int64_t chunk_tokens, DType sinks) {
  ProductListing of;
  of.context.dtype = model.dtype();
  of.context.tp = model.tp();
  of.sinks = sinks;
  std::vector<Product> list;
  int64_t rows = bucket_of(std::max<int64_t>(chunk_tokens, 1));
  const int64_t least = std::max<int64_t>(rows / kLeastShare, 1);
  while (true) {
    of.tokens = rows;
    for (int tower = 0; tower < (model.separate_towers() ? 2 : 1); ++tower)
      model.tower(tower).list_products(of, list);
    if (rows <= least) break;
    // The next smaller bucket is two thirds or three quarters of this one.
    rows = bucket_of(rows / 2 + 1) < rows ? bucket_of(rows / 2 + 1) : rows / 2;
  }
  const std::set<Product> once(list.begin(), list.end());
  return {once.begin(), once.end()};
}

void choose_product_algorithms(const Config& config, EmbeddingModel& model, int64_t chunk_tokens,
                               DType sinks, ProcessGrid& grid, Runtime& runtime,
                               RunRecord& record) {
  if (model.device() == Device::cpu()) return;
  if (config.runtime.tune) {
    runtime.set_phase("measuring products");
    const int64_t most = grid.world().max(chunk_tokens);
    std::vector<Product> products = products_of(model, most, sinks);
    add_loss_products(config, model, grid.shape().dp, products);
    products = of_all_ranks(products, grid.world());
    if (grid.world().rank() == 0) measure(products, model.device());
    record.share();
  }
  use_product_choices(choices().entries());
}

}  // namespace amur
