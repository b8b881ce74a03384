// The committed image of a segment (tests/golden), the daemon's writer and both readers agree byte
// for byte.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/sealed_memfd.h"
#include "client/directory_reader.h"
#include "tests/unit/tiers/segment_reader.h"
#include "tiers/directory/directory_segment.h"

namespace kavern::tiers {
namespace {

std::string GoldenFile(const std::string& name) {
  std::ifstream file(std::string(KAVERN_SOURCE_DIR) + "/tests/golden/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class DirectoryGolden : public ::testing::Test {
 protected:
  DirectoryGolden()
      : image_(GoldenFile("directory_segment.bin")),
        json_(nlohmann::json::parse(GoldenFile("directory_segment.json"))),
        fingerprint_{KeyOf(json_["fingerprint"]).bytes} {}

  static BlockKey KeyOf(const nlohmann::json& hex) {
    return *BlockKey::FromHex(hex.get<std::string>());
  }

  // The golden image in memory, as a client would map it.
  Mapping MapImage() const {
    const auto fd = CreateMemfd("kavern-golden", image_.size(), MemfdPages::kNormal);
    EXPECT_TRUE(fd.ok()) << fd.status();
    EXPECT_EQ(pwrite(fd->get(), image_.data(), image_.size(), 0),
              static_cast<ssize_t>(image_.size()));
    auto mapping = Mapping::Map(fd->get(), image_.size(), Mapping::Access::kReadOnly);
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    return *std::move(mapping);
  }

  const std::string image_;
  const nlohmann::json json_;
  const NamespaceFingerprint fingerprint_;
};

TEST_F(DirectoryGolden, TheWriterMakesTheSameBytes) {
  const auto segment = DirectorySegment::Create(fingerprint_, json_["generation"], 1);
  ASSERT_TRUE(segment.ok()) << segment.status();
  ASSERT_GT(json_["changes"].size(), 10u);
  for (const auto& change : json_["changes"]) {
    if (change["action"] == "set") {
      ASSERT_TRUE((*segment)->Set(KeyOf(change["key"]), change["tiers"]));
    } else {
      (*segment)->Erase(KeyOf(change["key"]));
    }
  }
  (*segment)->Retire();
  ASSERT_EQ((*segment)->size_bytes(), image_.size());
  std::string made(image_.size(), '\0');
  ASSERT_EQ(pread((*segment)->fd(), made.data(), made.size(), 0),
            static_cast<ssize_t>(made.size()));
  for (std::size_t i = 0; i < made.size(); ++i) {
    ASSERT_EQ(made[i], image_[i]) << "byte " << i;
  }
}

TEST_F(DirectoryGolden, TheReadersFindWhatThePageSays) {
  auto client = client::DirectoryReader::Create(MapImage(), fingerprint_, json_["generation"]);
  ASSERT_TRUE(client.ok()) << client.status();
  const SegmentReader reader(MapImage());
  EXPECT_EQ(reader.bucket_count(), json_["buckets"]);
  EXPECT_EQ(reader.header().generation, json_["generation"]);
  EXPECT_TRUE(client->retired());
  std::uint64_t present = 0;
  for (const auto& lookup : json_["lookups"]) {
    const BlockKey key = KeyOf(lookup["key"]);
    EXPECT_EQ(reader.Lookup(key), lookup["tiers"]) << key.ToHex();
    EXPECT_EQ(client->Lookup(key), lookup["tiers"]) << key.ToHex();
    present += lookup["tiers"] != 0 ? 1 : 0;
  }
  EXPECT_EQ(reader.header().entries, present);
  EXPECT_GT(present, 8u) << "so many that keys have left their home bucket";
}

}  // namespace
}  // namespace kavern::tiers
