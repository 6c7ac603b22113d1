#include "src/train/data/package_source.h"

#include <unordered_set>

#include "src/core/error.h"
#include "src/core/hash.h"

namespace amur {

Split split_of(std::string_view key) {
  const uint64_t share = fnv1a(key) % 100;
  return share < 5 ? Split::test : share < 10 ? Split::val : Split::train;
}

void PackageSource::build_index() {
  index_rows([&](const Row& row) {
    if (row.split == Split::train)
      index_.push_back(row.entry);
    else
      ++held_out_;
  });
  if (index_.empty())
    throw UsageError("{}: {} holds no pairs; is it the right file?", name_, files().front());
}

RawSample PackageSource::sample(int64_t index) const {
  return read(index_[static_cast<size_t>(index)]);
}

int64_t PackageSource::text_bytes(int64_t index) const {
  return static_cast<int64_t>(index_[static_cast<size_t>(index)] & 0xffff);
}

std::vector<EvalPair> PackageSource::evaluation() const {
  std::unordered_set<uint64_t> queries, documents;  // of the other splits
  std::vector<EvalPair> pairs;
  rows([&](const Row& row) {
    if (row.split == eval_) {
      pairs.push_back({row.query, row.document});
    } else {
      queries.insert(text_identity(folded(row.query)));
      documents.insert(text_identity(folded(row.document)));
    }
  });
  std::erase_if(pairs, [&](const EvalPair& pair) {
    return queries.contains(text_identity(folded(pair.query))) ||
           documents.contains(text_identity(folded(pair.document)));
  });
  return pairs;
}

std::string PackageSource::report() const {
  return fmt::format("{} ({}): {} training samples, {} held out", name_, files().front(), samples(),
                     held_out_);
}

}  // namespace amur
