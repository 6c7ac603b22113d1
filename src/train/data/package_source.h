// Sources that are Debian packages read as they are: small files with a fixed split into
// training, validation and test, indexed in memory at each start.
#pragma once

#include <functional>

#include "src/train/data/mapped_file.h"
#include "src/train/data/pair_source.h"

namespace amur {

enum class Split : uint8_t { train, val, test };
// By FNV-1a of the key, modulo 100: 0-4 test, 5-9 validation, else training.
Split split_of(std::string_view key);

class PackageSource : public PairSource {
 public:
  // One pair of texts as a package's file gives it. `entry` finds it again: the low 16 bits are the
  // bytes of both texts (at most 65535), the rest is the source's.
  struct Row {
    Split split;
    uint64_t entry;
    std::string query, document;
  };
  using Visit = std::function<void(const Row&)>;

  // Every pair of every split, in file order.
  virtual void rows(const Visit& visit) const = 0;

  int64_t samples() const final { return static_cast<int64_t>(index_.size()); }
  RawSample sample(int64_t index) const final;
  int64_t text_bytes(int64_t index) const final;
  // Pairs of the evaluation split neither side of which occurs, folded, in another split.
  std::vector<EvalPair> evaluation() const final;
  std::string report() const final;

 protected:
  PackageSource(std::string name, Split eval_split) : name_(std::move(name)), eval_(eval_split) {}
  virtual RawSample read(uint64_t entry) const = 0;
  // Training samples: the rows of the training split unless a source has something else.
  virtual void index_rows(const Visit& visit) const { rows(visit); }
  void build_index();  // called by the constructors of the sources

 private:
  std::string name_;
  Split eval_;
  std::vector<uint64_t> index_;
  int64_t held_out_ = 0;
};

std::unique_ptr<PackageSource> open_trans_de_en(const SourceConfig& source, Split eval_split);
std::unique_ptr<PackageSource> open_wordnet(const SourceConfig& source, Split eval_split);

}  // namespace amur
