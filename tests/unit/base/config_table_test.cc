#include "base/config_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/nearest_word.h"
#include "base/units.h"

namespace kavern {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

// One variable of every kind that an entry can bind.
struct Everything {
  struct Person {
    std::string name;
    std::vector<std::uint64_t> ids;
    bool operator==(const Person&) const = default;
  };

  std::uint64_t capacity = 4 * kGiB;
  milliseconds timeout{10000};
  std::uint64_t count = 7;
  bool flag = false;
  std::string path = "/default";
  std::string level = "info";
  std::uint32_t mode = 0600;
  std::vector<std::uint64_t> ids = {1, 2};
  std::vector<Person> people;
  bool operator==(const Everything&) const = default;
};

std::vector<ConfigEntry> PersonEntries(Everything::Person& person) {
  return {{"name", ConfigEntry::Text{&person.name, nullptr}, "Who."},
          {"ids", ConfigEntry::CountList{&person.ids, 0, 100}, "Ids."}};
}

ConfigTable TableOf(Everything& all) {
  const auto absolute = [](const std::string& text) {
    return text.starts_with("/") ? absl::OkStatus()
                                 : absl::InvalidArgumentError("an absolute path");
  };
  std::vector<ConfigEntry> entries = {
      {"ram.capacity", ConfigEntry::Bytes{&all.capacity, 64 * kMiB, 64 * kTiB}, "How much."},
      {"ram.pages.timeout",
       ConfigEntry::Duration{&all.timeout, milliseconds(10), milliseconds(60000)}, "How long."},
      {"ram.pages.count", ConfigEntry::Count{&all.count, 1, 1000}, "How many."},
      {"flag", ConfigEntry::Flag{&all.flag}, "Whether."},
      {"path", ConfigEntry::Text{&all.path, absolute}, "Where."},
      {"log.level", ConfigEntry::Choice{&all.level, {"info", "error", "off"}}, "How loud."},
      {"mode", ConfigEntry::Mode{&all.mode}, "Who may."},
      {"ids", ConfigEntry::CountList{&all.ids, 0, 0xffffffff}, "Which."},
      {"people",
       ConfigEntry::List{[&all] { all.people.clear(); },
                         [&all] { return PersonEntries(all.people.emplace_back()); },
                         [&all] { return all.people.size(); },
                         [&all](std::size_t i) { return PersonEntries(all.people[i]); }},
       "A list of people whose description is longer than one line of a terminal, so that it has "
       "to be "
       "broken into several lines of comment when it is printed."},
  };
  return ConfigTable(std::move(entries));
}

absl::Status Parse(Everything& all, const std::string& yaml) {
  return TableOf(all).Parse(yaml, "kavern.yaml");
}

// The message of what `yaml` does wrong; nothing may have been set beside what it got right.
std::string MistakeIn(const std::string& yaml) {
  Everything all;
  const absl::Status status = Parse(all, yaml);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
  EXPECT_EQ(all, Everything()) << yaml << " set something";
  return std::string(status.message());
}

TEST(ConfigTable, SetsEveryKindOfEntry) {
  Everything all;
  ASSERT_TRUE(Parse(all,
                    "ram:\n"
                    "  capacity: 1.5TiB\n"
                    "  pages: {timeout: 250ms, count: 12}\n"
                    "flag: true\n"
                    "path: /var/lib\n"
                    "log:\n"
                    "  level: error\n"
                    "mode: \"0660\"\n"
                    "ids: [0, 4294967295]\n"
                    "people:\n"
                    "  - name: ada\n"
                    "    ids: [3]\n"
                    "  - name: grace\n")
                  .ok());
  EXPECT_EQ(all.capacity, 1536 * kGiB);
  EXPECT_EQ(all.timeout, milliseconds(250));
  EXPECT_EQ(all.count, 12U);
  EXPECT_TRUE(all.flag);
  EXPECT_EQ(all.path, "/var/lib");
  EXPECT_EQ(all.level, "error");
  EXPECT_EQ(all.mode, 0660U);
  EXPECT_THAT(all.ids, ElementsAre(0U, 4294967295U));
  ASSERT_THAT(all.people, SizeIs(2));
  EXPECT_EQ(all.people[0], (Everything::Person{"ada", {3}}));
  EXPECT_EQ(all.people[1], (Everything::Person{"grace", {}}));
}

TEST(ConfigTable, WhatIsNotGivenKeepsItsDefault) {
  for (const char* yaml :
       {"", "\n", "# a comment\n", "{}", "~", "---\n", "ram:\n", "\xef\xbb\xbf# with a mark\n"}) {
    Everything all;
    const absl::Status status = Parse(all, yaml);
    EXPECT_TRUE(status.ok()) << "\"" << yaml << "\": " << status;
    EXPECT_EQ(all, Everything()) << yaml;
  }
}

TEST(ConfigTable, AListReplacesItsDefault) {
  Everything all;
  all.people = {{"default", {1}}};
  ASSERT_TRUE(Parse(all, "ids: []\npeople: []\n").ok());
  EXPECT_THAT(all.ids, IsEmpty());
  EXPECT_THAT(all.people, IsEmpty());
}

TEST(ConfigTable, UnknownKeyNamesItsPlaceAndTheNearestKnownKey) {
  EXPECT_EQ(MistakeIn("# one\nram:\n  capcity: 1GiB\n"),
            "kavern.yaml:3:3: ram.capcity: unknown key; did you mean ram.capacity?");
  EXPECT_EQ(MistakeIn("rm:\n  capacity: 1GiB\n"),
            "kavern.yaml:1:1: rm: unknown key; did you mean ram?");
  EXPECT_EQ(MistakeIn("ram: {pages: {cuont: 3}}\n"),
            "kavern.yaml:1:15: ram.pages.cuont: unknown key; did you mean ram.pages.count?");
  EXPECT_EQ(MistakeIn("completely_different: 1\n"),
            "kavern.yaml:1:1: completely_different: unknown key");
  EXPECT_EQ(MistakeIn("flag.flag: true\n"), "kavern.yaml:1:1: flag.flag: unknown key");
}

TEST(ConfigTable, UnknownKeyInAListNamesTheItem) {
  Everything all;
  const absl::Status status = Parse(all, "people:\n  - name: ada\n  - nmae: grace\n");
  EXPECT_EQ(std::string(status.message()),
            "kavern.yaml:3:5: people[1].nmae: unknown key; did you mean people[1].name?");
}

TEST(ConfigTable, BadValueNamesItsPlaceWhatWasGotAndWhatWasExpected) {
  EXPECT_EQ(MistakeIn("ram:\n  capacity: lots\n"),
            "kavern.yaml:2:13: ram.capacity: got \"lots\", expected a size such as 64GiB, 64 MiB "
            "to 64 TiB");
  EXPECT_EQ(MistakeIn("ram: {pages: {timeout: 10}}"),
            "kavern.yaml:1:24: ram.pages.timeout: got \"10\", expected a duration such as 250ms or "
            "10s, 10ms to 1m");
  EXPECT_EQ(MistakeIn("ram: {pages: {count: many}}"),
            "kavern.yaml:1:22: ram.pages.count: got \"many\", expected a whole number, 1 to 1000");
  EXPECT_EQ(MistakeIn("flag: yes"), "kavern.yaml:1:7: flag: got \"yes\", expected true or false");
  EXPECT_EQ(MistakeIn("path: here"),
            "kavern.yaml:1:7: path: got \"here\", expected an absolute path");
  EXPECT_EQ(MistakeIn("log: {level: loud}"),
            "kavern.yaml:1:14: log.level: got \"loud\", expected one of info, error, off");
  EXPECT_EQ(
      MistakeIn("mode: 8"),
      "kavern.yaml:1:7: mode: got \"8\", expected an octal file mode in quotes, such as \"0660\"");
  EXPECT_EQ(MistakeIn("ids: [1, x, 3]"),
            "kavern.yaml:1:10: ids[1]: got \"x\", expected a whole number, 0 to 4294967295");
}

TEST(ConfigTable, NumbersBeyondTheirRangeOrTheirTypeAreRefused) {
  for (const char* capacity :
       {"0", "63MiB", "65TiB", "-1GiB", "-1", "18446744073709551616", "99999999999999999999TiB",
        "17179869184TiB" /* 2^74 */, "1e30", "0x10000000", "1.5", ".inf", ".nan", "1GiB1GiB"}) {
    EXPECT_THAT(MistakeIn(absl::StrCat("ram: {capacity: ", capacity, "}")),
                HasSubstr("64 MiB to 64 TiB"))
        << capacity;
  }
  for (const char* count : {"0", "1001", "-1", "-18446744073709551615", "18446744073709551617",
                            "99999999999999999999999999", "1.0", "1e2", "0x10", "1_0", "''"}) {
    EXPECT_THAT(MistakeIn(absl::StrCat("ram: {pages: {count: ", count, "}}")),
                HasSubstr("1 to 1000"))
        << count;
  }
  for (const char* id : {"-1", "4294967296", "18446744073709551616", "1.0", "''"}) {
    EXPECT_THAT(MistakeIn(absl::StrCat("ids: [0, ", id, "]")),
                HasSubstr("expected a whole number, 0 to 4294967295"))
        << id;
  }
  for (const char* timeout : {"0ms", "9ms", "60001ms", "-10s", "1d", "9223372036854775808ms",
                              "99999999999999999999d", "1.0001s", "10S", "10 parsecs"}) {
    EXPECT_THAT(MistakeIn(absl::StrCat("ram: {pages: {timeout: ", timeout, "}}")),
                HasSubstr("10ms to 1m"))
        << timeout;
  }
  for (const char* mode : {"-1", "0999", "00", "01234567", "1777", "0o660", "rw-rw----", "''"}) {
    EXPECT_THAT(MistakeIn(absl::StrCat("mode: ", mode)), HasSubstr("octal")) << mode;
  }
}

TEST(ConfigTable, RangesIncludeBothEnds) {
  Everything all;
  ASSERT_TRUE(Parse(all, "ram: {capacity: 64MiB, pages: {timeout: 10ms, count: 1}}").ok());
  EXPECT_EQ(all.capacity, 64 * kMiB);
  ASSERT_TRUE(Parse(all, "ram: {capacity: 64TiB, pages: {timeout: 1m, count: 1000}}").ok());
  EXPECT_EQ(all.capacity, 64 * kTiB);
  EXPECT_EQ(all.timeout, milliseconds(60000));
  EXPECT_EQ(all.count, 1000U);
}

// Each kind of entry meets each kind of node that is not its own.
TEST(ConfigTable, AValueOfTheWrongShapeIsAMistake) {
  const std::vector<std::string> scalars = {
      "ram.capacity", "ram.pages.timeout", "ram.pages.count", "flag", "path", "log.level", "mode"};
  for (const std::string& path : scalars) {
    EXPECT_THAT(MistakeIn(path + ": [1]"), HasSubstr("got a list, expected")) << path;
    EXPECT_THAT(MistakeIn(path + ": {a: 1}"), HasSubstr("got a mapping, expected")) << path;
    EXPECT_THAT(MistakeIn(path + ":"), HasSubstr("got nothing, expected")) << path;
  }
  EXPECT_THAT(MistakeIn("ids: 3"), HasSubstr("got \"3\", expected a list of at most"));
  EXPECT_THAT(MistakeIn("ids: {a: 3}"), HasSubstr("got a mapping, expected a list of at most"));
  EXPECT_THAT(MistakeIn("ids: [[3]]"), HasSubstr("ids[0]: got a list, expected a whole number"));
  EXPECT_THAT(MistakeIn("people: 3"), HasSubstr("got \"3\", expected a list of at most"));
  EXPECT_THAT(MistakeIn("people: {name: ada}"), HasSubstr("got a mapping, expected a list"));
  EXPECT_THAT(MistakeIn("ram: 3"), HasSubstr("ram: got \"3\", expected a mapping"));
  EXPECT_THAT(MistakeIn("ram: [3]"), HasSubstr("ram: got a list, expected a mapping"));
  EXPECT_THAT(MistakeIn("3"), HasSubstr("got \"3\", expected a mapping"));
  EXPECT_THAT(MistakeIn("- ram"), HasSubstr("got a list, expected a mapping"));
  EXPECT_THAT(MistakeIn("? [a, b]\n: 1"), HasSubstr("expected a key, got a list or a mapping"));
}

TEST(ConfigTable, AKeyGivenTwiceIsAMistakeHoweverItIsWritten) {
  EXPECT_EQ(
      std::string(Parse(*std::make_unique<Everything>(), "flag: true\nflag: true\n").message()),
      "kavern.yaml:2:1: flag: is given twice");
  Everything all;
  EXPECT_EQ(std::string(Parse(all, "ram: {capacity: 1GiB}\nram: {capacity: 2GiB}\n").message()),
            "kavern.yaml:2:1: ram: is given twice");
  EXPECT_EQ(all.capacity, kGiB);
  EXPECT_EQ(std::string(Parse(all, "ram.capacity: 1GiB\nram: {capacity: 2GiB}\n").message()),
            "kavern.yaml:2:7: ram.capacity: is given twice");
  EXPECT_EQ(all.capacity, kGiB);
  // The same key of two items is no repetition.
  EXPECT_TRUE(Parse(all, "people: [{name: ada}, {name: ada}]").ok());
}

TEST(ConfigTable, AllMistakesAreReportedInTheOrderOfTheFile) {
  Everything all;
  const absl::Status status = Parse(all,
                                    "ram:\n"
                                    "  capacity: lots\n"
                                    "  pages:\n"
                                    "    count: 0\n"
                                    "    timeout: 1s\n"
                                    "flog: true\n"
                                    "ids: [a, 1, b]\n"
                                    "people:\n"
                                    "  - name: [x]\n"
                                    "  - nothing\n");
  const std::vector<std::string> lines = absl::StrSplit(std::string(status.message()), '\n');
  EXPECT_THAT(lines, ElementsAre(StartsWith("kavern.yaml:2:13: ram.capacity: got \"lots\""),
                                 StartsWith("kavern.yaml:4:12: ram.pages.count: got \"0\""),
                                 StartsWith("kavern.yaml:6:1: flog: unknown key"),
                                 StartsWith("kavern.yaml:7:7: ids[0]: got \"a\""),
                                 StartsWith("kavern.yaml:7:13: ids[2]: got \"b\""),
                                 StartsWith("kavern.yaml:9:11: people[0].name: got a list"),
                                 StartsWith("kavern.yaml:10:5: people[1]: got \"nothing\"")));
  EXPECT_EQ(all.timeout, milliseconds(1000));
}

TEST(ConfigTable, WhatIsNotYamlNamesItsPlace) {
  EXPECT_THAT(MistakeIn("flag: true\nram: [1, 2\n"), HasSubstr("not valid YAML"));
  EXPECT_THAT(MistakeIn("flag: [true\n"), StartsWith("kavern.yaml:2:1: not valid YAML"));
  EXPECT_THAT(MistakeIn("a: b: c\n"), StartsWith("kavern.yaml:1:5: not valid YAML"));
  EXPECT_THAT(MistakeIn("\tflag: true\n"), HasSubstr("not valid YAML"));
}

// Ten lines of aliases stand for 10^9 nodes in a tree; a reader that builds it never ends.
TEST(ConfigTable, AliasesAreRefusedBeforeATreeIsBuilt) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [");
    for (int j = 0; j < 10; ++j) absl::StrAppend(&bomb, j == 0 ? "" : ", ", "*a", i - 1);
    bomb += "]\n";
  }
  EXPECT_THAT(MistakeIn(bomb),
              StartsWith("kavern.yaml:2:10: not valid YAML: aliases are not allowed"));
  // An alias of itself is a tree without an end.
  EXPECT_THAT(MistakeIn("people: &p [*p]\n"), HasSubstr("aliases are not allowed"));
  EXPECT_THAT(MistakeIn("x: &x {flag: true}\n<<: *x\n"), HasSubstr("aliases are not allowed"));
}

TEST(ConfigTable, DeepNestingIsRefusedBeforeItIsFollowed) {
  constexpr std::size_t kDepth = 500000;
  EXPECT_THAT(MistakeIn("ids: " + std::string(kDepth, '[')), HasSubstr("nested too deeply"));
  EXPECT_THAT(MistakeIn("ids: " + std::string(kDepth, '{')), HasSubstr("nested too deeply"));
  std::string block = "ids:\n";
  for (std::size_t i = 0; i < kDepth / 2; ++i) block += "- ";
  EXPECT_THAT(MistakeIn(block + "1\n"), HasSubstr("nested too deeply"));
  EXPECT_THAT(MistakeIn("ids: [[[[[[[[1]]]]]]]]\n"), HasSubstr("nested too deeply"));
}

TEST(ConfigTable, ASecondDocumentIsNotIgnored) {
  EXPECT_THAT(MistakeIn("# first\n---\nram:\n---\nflag: true\n"),
              HasSubstr("expected one document"));
}

TEST(ConfigTable, AFileOfUnreasonableSizeIsRefused) {
  EXPECT_EQ(MistakeIn("# " + std::string(kMiB, 'x')), "kavern.yaml: expected at most 1 MiB");
  std::string many = "people:\n";
  for (int i = 0; i < 10001; ++i) many += "- {}\n";
  EXPECT_THAT(MistakeIn(many), HasSubstr("expected a list of at most 10000 mappings"));
  std::string ids = "ids: [0";
  for (int i = 0; i < 10000; ++i) ids += ",0";
  EXPECT_THAT(MistakeIn(ids + "]"), HasSubstr("expected a list of at most 10000 whole numbers"));
}

TEST(ConfigTable, AFileOfNothingButMistakesGetsAShortReport) {
  std::string yaml;
  for (int i = 0; i < 50000; ++i) absl::StrAppend(&yaml, "key_", i, ": 1\n");
  const std::string report = MistakeIn(yaml);
  const std::vector<std::string> lines = absl::StrSplit(report, '\n');
  EXPECT_THAT(lines, SizeIs(101));
  EXPECT_EQ(lines.back(), "and more");
}

TEST(ConfigTable, AMistakeCannotForgeLinesOrFloodTheReport) {
  EXPECT_EQ(
      MistakeIn("flag: \"a\\nkavern.yaml:1:1: all is well\""),
      "kavern.yaml:1:7: flag: got \"a\\nkavern.yaml:1:1: all is well\", expected true or false");
  EXPECT_EQ(MistakeIn("\"a\\nb\": 1"), "kavern.yaml:1:1: a\\nb: unknown key");
  EXPECT_LT(MistakeIn(std::string(1000, 'k') + ": 1").size(), 200U);
  EXPECT_LT(MistakeIn("flag: " + std::string(100000, 'v')).size(), 200U);
}

// Any damage to a good file is an answer, not a crash: 4000 files, each with up to four bytes of a
// good one replaced, taken out or repeated.
TEST(ConfigTable, AnyDamagedFileGetsAnAnswer) {
  Everything all;
  all.people = {{"ada", {1, 2}}, {"grace", {}}};
  const std::string good = TableOf(all).Print();
  std::mt19937_64 random(20240611);
  constexpr char kBytes[] = "\0\t\n\r -:?,[]{}#&*!|>'\"%@`\\~<=.09azAZ\x7f\x80\xff";
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string text = good;
    const auto edits = 1 + random() % 4;
    for (std::uint64_t i = 0; i < edits; ++i) {
      const std::size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = kBytes[random() % sizeof(kBytes)];
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
    }
    Everything read;
    if (!TableOf(read).Parse(text, "kavern.yaml").ok()) ++refused;
  }
  EXPECT_GT(refused, 400);
}

TEST(ConfigTable, WhatItPrintsParsesBackToTheSameValues) {
  std::vector<Everything> cases(4);
  cases[1] = {.capacity = 123456789123,  // no whole number of any unit
              .timeout = milliseconds(59999),
              .count = 1000,
              .flag = true,
              .path = "/with \"quotes\", \\, # and: colon\n\ttab \x01 \xc3\xa9",
              .level = "off",
              .mode = 07,
              .ids = {},
              .people = {{"", {}}, {"- a: [b", {0, 100}}, {"true", {}}}};
  cases[2].path = "/";
  cases[2].people = {{"~", {7}}};
  cases[3].path = "/" + std::string(500, 'x');
  cases[3].ids = {0, 4294967295};
  for (Everything& wanted : cases) {
    const std::string printed = TableOf(wanted).Print();
    Everything read;
    read.people = {{"left over", {}}};
    const absl::Status status = TableOf(read).Parse(printed, "printed.yaml");
    EXPECT_TRUE(status.ok()) << status << "\n" << printed;
    EXPECT_EQ(read, wanted) << printed;
  }
}

TEST(ConfigTable, PrintsEveryEntryBelowItsDescription) {
  Everything all;
  all.people = {{"ada", {1}}};
  const std::string printed = TableOf(all).Print();
  EXPECT_THAT(printed, StartsWith("ram:\n"
                                  "  # How much.\n"
                                  "  capacity: 4 GiB\n"));
  EXPECT_THAT(printed, HasSubstr("  pages:\n    # How long.\n    timeout: 10s\n"));
  EXPECT_THAT(printed, HasSubstr("\nmode: \"0600\"\n"));
  EXPECT_THAT(printed, HasSubstr("\nids: [1, 2]\n"));
  EXPECT_THAT(printed, HasSubstr("people:\n  - name: \"ada\"\n    ids: [1]\n"));
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(printed, '\n'))) {
    EXPECT_LE(line.size(), 100U) << line;
  }
}

TEST(NearestWord, FindsATypoAndNotAnotherWord) {
  const std::vector<std::string> known = {"ram.capacity", "ram.region", "log.level"};
  EXPECT_EQ(NearestWord("ram.capacity", known), "ram.capacity");
  EXPECT_EQ(NearestWord("ram.capactiy", known), "ram.capacity");
  EXPECT_EQ(NearestWord("ramregion", known), "ram.region");
  EXPECT_EQ(NearestWord("log.levels", known), "log.level");
  EXPECT_EQ(NearestWord("nvme.devices", known), "");
  EXPECT_EQ(NearestWord("", known), "");
  EXPECT_EQ(NearestWord("ram", {}), "");
  EXPECT_EQ(NearestWord(std::string(1 << 20, 'a'), known), "");
}

}  // namespace
}  // namespace kavern
