#include "comm/trace.h"

#include <algorithm>

#include "src/core/error.h"
#include "src/core/hash.h"

namespace amur {

std::string CollectiveRecord::text() const {
  std::string s = fmt::format("{}.{} #{}", group, op, sequence);
  if (count >= 0) s += fmt::format(", {} x {}", name_of(dtype), count);
  if (root >= 0) s += fmt::format(", root {}", root);
  return s + ", at " + site.text();
}

uint64_t CollectiveRecord::hash() const {
  uint64_t h = fnv1a(op);
  h = fnv1a(site.file, h);
  for (uint64_t part : {sequence, static_cast<uint64_t>(dtype), static_cast<uint64_t>(count),
                        static_cast<uint64_t>(root), detail, static_cast<uint64_t>(site.line)})
    h = mix64(h ^ part) + 0x9e3779b97f4a7c15u;
  return h;
}

void Trace::set_phase(const std::string& phase) {
  std::lock_guard lock(mutex_);
  phase_ = phase;
  ++events_;
}

std::string Trace::phase() const {
  std::lock_guard lock(mutex_);
  return phase_;
}

void Trace::advance() {
  std::lock_guard lock(mutex_);
  ++events_;
}

void Trace::enter(CollectiveRecord record) {
  std::lock_guard lock(mutex_);
  ring_[collectives_ % kKept] = std::move(record);
  ++collectives_;
  ++events_;
  in_collective_ = true;
  awaited_ = 0;  // a wait that failed
}

void Trace::leave() {
  std::lock_guard lock(mutex_);
  if (collectives_ > 0) ring_[(collectives_ - 1) % kKept].done = true;
  ++events_;
  in_collective_ = false;
}

// A ticket is the number of collectives entered, this one included.
uint64_t Trace::detach() {
  std::lock_guard lock(mutex_);
  ++events_;
  in_collective_ = false;
  return collectives_;
}

void Trace::end(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  if (ticket + kKept > collectives_) ring_[(ticket - 1) % kKept].done = true;
  ++events_;
}

void Trace::wait_for(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  awaited_ = ticket;
  in_collective_ = true;
  ++events_;
}

void Trace::waited() {
  std::lock_guard lock(mutex_);
  awaited_ = 0;
  in_collective_ = false;
  ++events_;
}

Position Trace::position() const {
  std::lock_guard lock(mutex_);
  Position p{phase_, events_, collectives_, in_collective_, {}};
  const uint64_t shown = awaited_ > 0 && awaited_ + kKept > collectives_ ? awaited_ : collectives_;
  if (shown > 0) p.last = ring_[(shown - 1) % kKept];
  return p;
}

std::vector<CollectiveRecord> Trace::last(size_t count) const {
  std::lock_guard lock(mutex_);
  count = std::min({count, kKept, static_cast<size_t>(collectives_)});
  std::vector<CollectiveRecord> records;
  for (uint64_t i = collectives_ - count; i < collectives_; ++i)
    records.push_back(ring_[i % kKept]);
  return records;
}

std::string Trace::last_text(size_t count) const {
  const auto records = last(count);
  if (records.empty()) return "  no collective was called";
  std::string text = "  last collectives of this rank, newest last:";
  for (const CollectiveRecord& r : records)
    text += fmt::format("\n    {}{}", r.text(), r.done ? "" : " (entered, not left)");
  return text;
}

void Trace::set_label(std::string label) {
  std::lock_guard lock(mutex_);
  label_ = std::move(label);
}

std::string Trace::label() const {
  std::lock_guard lock(mutex_);
  return label_;
}

void Trace::interrupt(const std::string& why) {
  std::lock_guard lock(mutex_);
  interrupt_reason_ = why;
  interrupted_.store(true, std::memory_order_release);
}

void Trace::throw_interrupted() const {
  std::lock_guard lock(mutex_);
  throw CommError("{}", interrupt_reason_);
}

}  // namespace amur
