#include "src/train/optimizer/gradient_sync.h"

#include <algorithm>
#include <map>

#include "kernels/elementwise.h"
#include "kernels/rows.h"

namespace amur {
namespace {

// Touched rows travel packed, about this much at a time.
constexpr int64_t kPackedBytes = int64_t{4} << 20, kPackedBytesOfGpu = int64_t{64} << 20;

}  // namespace

GradientSync::GradientSync(ParameterSet& parameters, Communicator* tp)
    : parameters_(parameters), tp_(tp) {
  set_options({});
}

void GradientSync::set_options(SyncOptions options) {
  options_ = std::move(options);
  std::map<const Parameter*, size_t> place;
  for (size_t i = 0; i < parameters_.size(); ++i) place[&parameters_[i]] = i;
  buckets_.clear();
  std::vector<bool> named(parameters_.size(), false);
  for (const auto& group : options_.groups) {
    buckets_.emplace_back();
    for (const Parameter* p : group) {
      const size_t i = place.at(p);
      buckets_.back().push_back(i);
      named[i] = true;
    }
  }
  buckets_.emplace_back();
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (!named[i]) buckets_.back().push_back(i);
}

void GradientSync::begin(PartOf part_of) {
  part_of_ = std::move(part_of);
  ready_.assign(buckets_.size(), false);
  started_ = 0;
  flagged_.clear();
  not_finite_ = parameters_.size();
}

void GradientSync::group_done(size_t group, Communicator& dp) {
  AMUR_CHECK(group + 1 < buckets_.size() && !ready_[group], "group {} of {} is done", group,
             options_.groups.size());
  ready_[group] = true;
  start_ready(dp);
}

void GradientSync::start_ready(Communicator& dp) {
  while (started_ < buckets_.size() && ready_[started_]) start(buckets_[started_++], dp);
}

void GradientSync::start(const std::vector<size_t>& bucket, Communicator& dp) {
  std::vector<TensorView> sums, residuals;
  const auto first_flag = std::ssize(flagged_);
  for (const size_t i : bucket) {
    const Parameter& p = parameters_[i];
    const Part part = part_of_(i);
    if (!p.sink.defined() || part.rows) continue;
    flagged_.push_back(i);
    sums.push_back(p.sink);
    residuals.push_back(part.residual);
  }
  if (sums.empty()) return;
  mark(sums, first_flag);
  if (dp.size() == 1) return;
  if (options_.rounded)
    dp.all_reduce_rounded(sums, residuals, options_.stream);
  else
    dp.all_reduce(sums, ReduceOp::sum, options_.stream);
}

void GradientSync::mark(const std::vector<TensorView>& sums, int64_t first_flag) {
  if (!flags_.defined())
    flags_ = Tensor({std::ssize(parameters_)}, DType::i32, sums.front().device());
  if (first_flag == 0) fill_zero(flags_);
  const std::vector<ConstTensorView> views(sums.begin(), sums.end());
  mark_not_finite(views, flags_.view().slice(first_flag, std::ssize(sums)));
}

void GradientSync::sum_rows(size_t index, const Part& part, Communicator& dp) {
  const TensorView sink = parameters_[index].sink;
  const std::span<const int64_t> rows = *part.rows;
  if (index < not_finite_ && !all_finite_in_rows(sink, rows)) not_finite_ = index;
  if (rows.empty() || dp.size() == 1) return;
  // On a GPU in the order of the stream that packs and unpacks them: the host waits for nothing.
  const bool on_gpu = sink.device() != Device::cpu();
  const Stream stream = on_gpu ? Stream(sink.device()) : options_.stream;
  const auto row_bytes = static_cast<int64_t>(sink.slice(0, 1).bytes());
  const int64_t at_once = std::clamp<int64_t>(
      (on_gpu ? kPackedBytesOfGpu : kPackedBytes) / row_bytes, 1, std::ssize(rows));
  Tensor packed({at_once, sink.columns()}, sink.dtype(), sink.device()), rounded_away;
  if (options_.rounded) rounded_away = Tensor(packed.shape(), sink.dtype(), sink.device());
  for (int64_t first = 0; first < std::ssize(rows); first += at_once) {
    const int64_t count = std::min(at_once, std::ssize(rows) - first);
    const std::vector<int32_t> some(rows.begin() + first, rows.begin() + first + count);
    const TensorView sum = packed.view().slice(0, count);
    const TensorView rest = options_.rounded ? rounded_away.view().slice(0, count) : TensorView();
    gather_rows(sink, some, sum);
    if (options_.rounded) {
      dp.all_reduce_rounded({&sum, 1}, {&rest, 1}, stream);
    } else {
      dp.all_reduce(sum, ReduceOp::sum, stream);
    }
    if (!on_gpu) dp.synchronize(stream);
    scatter_rows(sum, some, sink);
    if (options_.rounded) scatter_rows(rest, some, part.residual);
  }
}

void GradientSync::finish(int64_t step, Communicator& dp) {
  ready_.assign(buckets_.size(), true);
  start_ready(dp);
  if (!flagged_.empty()) {
    Tensor staging;
    const auto* flags = on_host(flags_, staging).as<int32_t>();
    for (size_t k = 0; k < flagged_.size(); ++k)
      if (flags[k] != 0) not_finite_ = std::min(not_finite_, flagged_[k]);
  }
  for (const auto& bucket : buckets_)
    for (const size_t i : bucket)
      if (const Part part = part_of_(i); part.rows && parameters_[i].sink.defined())
        sum_rows(i, part, dp);

  const int64_t width = tp_ ? tp_->size() : 1, ranks = dp.size() * width;
  const int64_t own = dp.rank() * width + (tp_ ? tp_->rank() : 0);
  int64_t worst = dp.min(static_cast<int64_t>(not_finite_) * ranks + own);
  if (tp_) worst = tp_->min(worst);
  dp.synchronize(options_.stream);
  const auto tensor = static_cast<size_t>(worst / ranks);
  if (tensor == parameters_.size()) return;
  throw NumericError(
      "step {}: the gradient of {} is not finite on {} rank {}{}; the parameters are those of the "
      "step before. Resume from the newest checkpoint, with a lower optimizer.learning_rate or in "
      "fp32",
      step, parameters_[tensor].name, dp.name(), worst % ranks / width,
      tp_ ? fmt::format(", tp rank {}", worst % width) : "");
}

void GradientSync::complete_sums(std::vector<double>& sums) const {
  if (!tp_) return;
  for (size_t i = 0; i < sums.size(); ++i)
    if (tp_->rank() > 0 && parameters_[i % parameters_.size()].sharding.axis < 0) sums[i] = 0;
  tp_->all_reduce(TensorView(sums.data(), {std::ssize(sums)}, DType::f64), ReduceOp::sum);
  tp_->synchronize();
}

}  // namespace amur
