#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "src/core/choices.h"
#include "src/core/error.h"

namespace amur {
namespace {

TEST(Choices, AreMadeOnce) {
  Choices made;
  EXPECT_EQ(made.find("product/a"), std::nullopt);
  made.record("product/a", "7");
  EXPECT_EQ(made.find("product/a"), "7");
  made.record("product/a", "7");
  EXPECT_THROW(made.record("product/a", "8"), InternalError);
  EXPECT_THROW(made.record("", "8"), InternalError);
  EXPECT_EQ(made.find("product/a"), "7");
  EXPECT_EQ(made.find("product"), std::nullopt);
}

TEST(Choices, AreTakenOverWhole) {
  Choices made;
  made.record("attention/x", "own");
  made.replace({{"product/b", "1"}, {"product/a", "2"}});
  EXPECT_EQ(made.find("attention/x"), std::nullopt);
  EXPECT_EQ(made.entries(), (Choices::Map{{"product/a", "2"}, {"product/b", "1"}}));
  EXPECT_EQ(Choices(made.entries()).find("product/b"), "1");
}

TEST(Choices, ManyThreads) {
  Choices made;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&made] {
      for (int i = 0; i < 200; ++i) {
        made.record(std::to_string(i), std::to_string(2 * i));
        EXPECT_EQ(made.find(std::to_string(i)), std::to_string(2 * i));
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(made.entries().size(), 200u);
}

}  // namespace
}  // namespace amur
