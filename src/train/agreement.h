// Running something that may fail on some ranks only, so that all ranks hear of it.
#pragma once

#include <filesystem>
#include <new>
#include <string>

#include "comm/communicator.h"

namespace amur {

// The text of a failure to do with files; "" where all went well. Other exceptions pass.
template <class F>
std::string io_error_text(F&& f) {
  try {
    f();
    return "";
  } catch (const IoError& e) {
    return e.what();
  } catch (const std::filesystem::filesystem_error& e) {
    return fmt::format("'{}': {}", e.path1().string(), e.code().message());
  } catch (const std::bad_alloc&) {
    return "not enough memory";
  }
}

// Collective: a failure of one rank is an IoError on every rank.
template <class F>
void on_every_rank(Communicator& world, F&& f, CallSite site = CallSite::here()) {
  agree_or_throw<IoError>(world, io_error_text(f), site);
}
template <class F>
void on_first_rank(Communicator& world, F&& f, CallSite site = CallSite::here()) {
  agree_or_throw<IoError>(world, world.rank() == 0 ? io_error_text(f) : std::string(), site);
}

// Of what users wrote: a UsageError of some rank is one on every rank, and so is an IoError.
template <class F>
void read_on_every_rank(Communicator& world, F&& f, CallSite site = CallSite::here()) {
  std::string usage, io;
  try {
    io = io_error_text(f);
  } catch (const UsageError& e) {
    usage = e.what();
  }
  agree_or_throw<UsageError>(world, usage, site);
  agree_or_throw<IoError>(world, io, site);
}
template <class F>
void read_on_first_rank(Communicator& world, F&& f, CallSite site = CallSite::here()) {
  const auto first = [&] {
    if (world.rank() == 0) f();
  };
  read_on_every_rank(world, first, site);
}

}  // namespace amur
