// Choices that a run makes by measuring, and on which its bits depend: which algorithm computes a
// product, which engine an attention, how large an automatic budget is.
//
// A choice is made once. The trainer has rank 0 measure before the first step, gives its choices to
// every rank, writes them to the run folder (choices.json) and to each checkpoint (`/measured`),
// and on resume begins from the checkpoint's, so that nothing is measured twice and the bits stay.
//
// Names are paths that people read and that hold all that a choice depends on, broadest first; it
// is not found, and made anew, where one of these has changed:
//   product/NVIDIA H200/cuBLASLt 13.1.0/...      attention/NVIDIA H200/cuDNN 9.8.0/...
//   budget/chunk_tokens/NVIDIA H200/...
// Values are text, of any form that its maker reads back.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace amur {

class Choices {
 public:
  using Map = std::map<std::string, std::string>;

  Choices() = default;
  explicit Choices(Map entries) : entries_(std::move(entries)) {}

  // Nothing where the choice was not made yet.
  std::optional<std::string> find(const std::string& name) const;
  // InternalError where the choice was made before, with another value: it holds for the whole run.
  void record(const std::string& name, const std::string& value);

  Map entries() const;
  // Forgets what there was.
  void replace(Map entries);

 private:
  mutable std::mutex mutex_;
  Map entries_;
};

// Those of this process: one run at a time. For all threads; the same on every rank during a step.
// The libraries loaded at run time (src/core/library.h) do not see it: they are handed entries.
Choices& choices();

}  // namespace amur
