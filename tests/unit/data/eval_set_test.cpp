// The evaluation set of the quick start, as every figure of it assumes it.
#include <mpi.h>

#include <algorithm>
#include <set>

#include "comm/mpi_communicator.h"
#include "comm/trace.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

TEST(EvalSet, TransDeEnHasItsDistinctQueriesAndDocuments) {
  const MPI_Comm world = MPI_COMM_WORLD;
  Trace trace;
  const auto all = MpiCommunicator::split(&world, 0, "world", &trace);
  const auto node = MpiCommunicator::split_by_node(&world, "node", &trace);
  DataConfig config;
  config.sources.resize(1);
  config.sources[0].format = SourceFormat::trans_de_en;
  config.sources[0].document_prefix = "en: ";
  const Dataset data(config, *all, *node);
  EXPECT_EQ(data.samples(), 347925);
  EXPECT_NE(data.fingerprint().find("de-en 25611714 "), std::string::npos);

  const EvalSet set = data.eval_set();
  EXPECT_EQ(set.queries.size(), 12930u);
  EXPECT_EQ(set.documents.size(), 13221u);
  ASSERT_EQ(set.right.size(), set.queries.size());
  EXPECT_EQ(std::set<std::string>(set.documents.begin(), set.documents.end()).size(), 13221u);
  EXPECT_TRUE(set.documents[17].starts_with("en: "));
  std::set<int32_t> reached;
  for (const auto& right : set.right) {
    EXPECT_FALSE(right.empty());
    EXPECT_TRUE(std::is_sorted(right.begin(), right.end()));
    reached.insert(right.begin(), right.end());
  }
  EXPECT_EQ(reached.size(), set.documents.size());
}

}  // namespace
}  // namespace amur
