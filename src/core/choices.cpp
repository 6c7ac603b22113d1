#include "src/core/choices.h"

#include "src/core/error.h"

namespace amur {

std::optional<std::string> Choices::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end()) return std::nullopt;
  return found->second;
}

void Choices::record(const std::string& name, const std::string& value) {
  AMUR_CHECK(!name.empty(), "a choice without a name, of '{}'", value);
  const std::lock_guard lock(mutex_);
  const auto [entry, added] = entries_.emplace(name, value);
  AMUR_CHECK(added || entry->second == value, "'{}' was chosen as '{}' and now as '{}'", name,
             entry->second, value);
}

Choices::Map Choices::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

void Choices::replace(Map entries) {
  const std::lock_guard lock(mutex_);
  entries_ = std::move(entries);
}

Choices& choices() {
  static Choices all;
  return all;
}

}  // namespace amur
