#include "base/config_table.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/nearest_word.h"
#include "base/units.h"

namespace kavern {
namespace {

constexpr std::size_t kYamlBytesMax = kMiB;
constexpr int kDepthMax = 8;
constexpr std::size_t kListItemsMax = 10000;
constexpr std::size_t kQuotedBytesMax = 80;
// Nobody reads further, and each unknown key is compared with every known one.
constexpr std::size_t kMistakesMax = 100;

// Collects mistakes with their places: an operator mends them all in one go.
class Mistakes {
 public:
  explicit Mistakes(std::string_view file_name) : file_name_(file_name) {}

  void Add(const YAML::Mark& mark, const std::string& path, const std::string& what) {
    if (lines_.size() == kMistakesMax) {
      more_ = true;
      return;
    }
    lines_.push_back(absl::StrCat(PlaceOf(mark), ": ", path, path.empty() ? "" : ": ", what));
  }

  std::string PlaceOf(const YAML::Mark& mark) const {
    return mark.is_null() ? file_name_
                          : absl::StrCat(file_name_, ":", mark.line + 1, ":", mark.column + 1);
  }

  bool full() const { return more_; }

  absl::Status ToStatus() const {
    if (lines_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(absl::StrJoin(lines_, "\n"), more_ ? "\nand more" : ""));
  }

 private:
  const std::string file_name_;
  std::vector<std::string> lines_;
  bool more_ = false;
};

// Escaped: a value must not be able to break the report into other lines.
std::string Quoted(const std::string& text) {
  const bool cut = text.size() > kQuotedBytesMax;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(text.substr(0, kQuotedBytesMax)),
                      cut ? "...\"" : "\"");
}

// A key of the file, which may hold anything.
std::string Shown(const std::string& path) {
  return absl::Utf8SafeCHexEscape(path.substr(0, kQuotedBytesMax));
}

std::string Got(const YAML::Node& node, const std::string& expected) {
  const std::string got = node.IsScalar()     ? Quoted(node.Scalar())
                          : node.IsSequence() ? "a list"
                          : node.IsMap()      ? "a mapping"
                                              : "nothing";
  return absl::StrCat("got ", got, ", expected ", expected);
}

template <typename T>
std::string Between(const std::string& kind, const T& low, const T& high) {
  return absl::StrCat(kind, ", ", low, " to ", high);
}

absl::Status Bad(const YAML::Node& node, const std::string& expected) {
  return absl::InvalidArgumentError(Got(node, expected));
}

absl::Status SetCount(const YAML::Node& node, std::uint64_t min, std::uint64_t max,
                      std::uint64_t* target) {
  std::uint64_t value = 0;
  if (!node.IsScalar() || !absl::SimpleAtoi(node.Scalar(), &value) || value < min || value > max) {
    return Bad(node, Between("a whole number", min, max));
  }
  *target = value;
  return absl::OkStatus();
}

// Sets one variable from a node; the message says what was got and what was expected.
struct Setter {
  const YAML::Node& node;

  absl::Status operator()(const ConfigEntry::Bytes& entry) const {
    const auto value =
        node.IsScalar() ? ParseBytes(node.Scalar()) : absl::InvalidArgumentError("not a scalar");
    if (!value.ok() || *value < entry.min || *value > entry.max) {
      return Bad(node,
                 Between("a size such as 64GiB", FormatBytes(entry.min), FormatBytes(entry.max)));
    }
    *entry.target = *value;
    return absl::OkStatus();
  }

  absl::Status operator()(const ConfigEntry::Duration& entry) const {
    const auto value =
        node.IsScalar() ? ParseDuration(node.Scalar()) : absl::InvalidArgumentError("not a scalar");
    if (!value.ok() || *value < entry.min || *value > entry.max) {
      return Bad(node, Between("a duration such as 250ms or 10s", FormatDuration(entry.min),
                               FormatDuration(entry.max)));
    }
    *entry.target = *value;
    return absl::OkStatus();
  }

  absl::Status operator()(const ConfigEntry::Count& entry) const {
    return SetCount(node, entry.min, entry.max, entry.target);
  }

  absl::Status operator()(const ConfigEntry::Flag& entry) const {
    if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false")) {
      return Bad(node, "true or false");
    }
    *entry.target = node.Scalar() == "true";
    return absl::OkStatus();
  }

  absl::Status operator()(const ConfigEntry::Text& entry) const {
    if (!node.IsScalar()) return Bad(node, "text");
    if (entry.check) {
      if (absl::Status status = entry.check(node.Scalar()); !status.ok()) {
        return Bad(node, std::string(status.message()));
      }
    }
    *entry.target = node.Scalar();
    return absl::OkStatus();
  }

  absl::Status operator()(const ConfigEntry::Choice& entry) const {
    if (!node.IsScalar() || std::find(entry.choices.begin(), entry.choices.end(), node.Scalar()) ==
                                entry.choices.end()) {
      return Bad(node, absl::StrCat("one of ", absl::StrJoin(entry.choices, ", ")));
    }
    *entry.target = node.Scalar();
    return absl::OkStatus();
  }

  absl::Status operator()(const ConfigEntry::Mode& entry) const {
    const std::string text = node.IsScalar() ? node.Scalar() : "";
    const bool octal = (text.size() == 3 || text.size() == 4) &&
                       text.find_first_not_of("01234567") == std::string::npos &&
                       (text.size() == 3 || text[0] == '0');
    if (!octal) return Bad(node, "an octal file mode in quotes, such as \"0660\"");
    *entry.target = static_cast<std::uint32_t>(std::stoul(text, nullptr, 8));
    return absl::OkStatus();
  }

  absl::Status operator()(const ConfigEntry::CountList& /*entry*/) const { return ReadByReader(); }
  absl::Status operator()(const ConfigEntry::List& /*entry*/) const { return ReadByReader(); }

 private:
  static absl::Status ReadByReader() {
    return absl::InternalError("a list is read by Reader, which knows the place of each item");
  }
};

// Reads a YAML tree by a table of entries.
class Reader {
 public:
  Reader(Mistakes& mistakes, ConfigPlaces& places) : mistakes_(mistakes), places_(places) {}

  void ReadMap(const YAML::Node& node, const std::string& prefix,
               const std::vector<ConfigEntry>& entries) {
    if (!node.IsMap()) {
      mistakes_.Add(node.Mark(), prefix, Got(node, "a mapping"));
      return;
    }
    for (const auto& pair : node) {
      if (mistakes_.full()) return;
      const YAML::Node& key = pair.first;
      const std::string name = key.IsScalar() ? key.Scalar() : "";
      const std::string path = prefix.empty() ? name : absl::StrCat(prefix, ".", name);
      if (!key.IsScalar()) {
        mistakes_.Add(key.Mark(), prefix, "expected a key, got a list or a mapping");
      } else if (!seen_.insert(path).second) {
        mistakes_.Add(key.Mark(), Shown(path), "is given twice");
      } else {
        ReadEntry(key, pair.second, path, entries);
      }
    }
  }

 private:
  void ReadEntry(const YAML::Node& key, const YAML::Node& value, const std::string& path,
                 const std::vector<ConfigEntry>& entries) {
    for (const ConfigEntry& entry : entries) {
      if (entry.path == path) {
        places_[path] = mistakes_.PlaceOf(value.Mark());
        ReadValue(value, entry, path);
        return;
      }
    }
    const std::string section = path + ".";
    const bool is_section = std::any_of(entries.begin(), entries.end(), [&](const auto& entry) {
      return entry.path.compare(0, section.size(), section) == 0;
    });
    if (is_section) {
      // "ram:" with nothing below it changes nothing.
      if (!value.IsNull()) ReadMap(value, path, entries);
      return;
    }
    std::vector<std::string> known;
    for (const ConfigEntry& entry : entries) {
      known.push_back(entry.path);
      for (std::size_t dot = entry.path.find('.'); dot != std::string::npos;
           dot = entry.path.find('.', dot + 1)) {
        known.push_back(entry.path.substr(0, dot));
      }
    }
    const std::string nearest = NearestWord(path, known);
    mistakes_.Add(
        key.Mark(), Shown(path),
        nearest.empty() ? "unknown key" : absl::StrCat("unknown key; did you mean ", nearest, "?"));
  }

  void ReadValue(const YAML::Node& value, const ConfigEntry& entry, const std::string& path) {
    if (const auto* list = std::get_if<ConfigEntry::List>(&entry.value)) {
      ReadList(value, *list, path);
    } else if (const auto* counts = std::get_if<ConfigEntry::CountList>(&entry.value)) {
      ReadCountList(value, *counts, path);
    } else if (absl::Status status = std::visit(Setter{value}, entry.value); !status.ok()) {
      mistakes_.Add(value.Mark(), path, std::string(status.message()));
    }
  }

  void ReadCountList(const YAML::Node& value, const ConfigEntry::CountList& list,
                     const std::string& path) {
    if (!value.IsSequence() || value.size() > kListItemsMax) {
      mistakes_.Add(
          value.Mark(), path,
          Got(value, absl::StrCat("a list of at most ", kListItemsMax, " whole numbers")));
      return;
    }
    std::vector<std::uint64_t> counts;
    bool good = true;
    for (const YAML::Node& item : value) {
      const std::string item_path = absl::StrCat(path, "[", counts.size(), "]");
      absl::Status status = SetCount(item, list.min, list.max, &counts.emplace_back());
      if (!status.ok()) mistakes_.Add(item.Mark(), item_path, std::string(status.message()));
      good = good && status.ok();
    }
    if (good) *list.target = std::move(counts);
  }

  void ReadList(const YAML::Node& value, const ConfigEntry::List& list, const std::string& path) {
    if (!value.IsSequence() || value.size() > kListItemsMax) {
      mistakes_.Add(value.Mark(), path,
                    Got(value, absl::StrCat("a list of at most ", kListItemsMax, " mappings")));
      return;
    }
    list.clear();
    std::size_t index = 0;
    for (const YAML::Node& item : value) {
      const std::string item_path = absl::StrCat(path, "[", index++, "]");
      std::vector<ConfigEntry> entries = list.append();
      for (ConfigEntry& entry : entries) entry.path = absl::StrCat(item_path, ".", entry.path);
      places_[item_path] = mistakes_.PlaceOf(item.Mark());
      ReadMap(item, item_path, entries);
    }
  }

  Mistakes& mistakes_;
  ConfigPlaces& places_;
  // By full path: "ram.capacity" at the top and "capacity" below "ram" are one key.
  std::set<std::string> seen_;
};

// What the event parser sees before a tree is built: aliases, which let a few lines stand for
// billions of nodes, nesting deeper than any configuration, and a second document, which the tree
// would not hold.
class HostileYamlFinder final : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) throw YAML::ParserException(mark, "expected one document, found another");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& /*mark*/, YAML::anchor_t /*anchor*/) override {}
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override {
    throw YAML::ParserException(mark, "aliases are not allowed in a configuration");
  }
  void OnScalar(const YAML::Mark& /*mark*/, const std::string& /*tag*/, YAML::anchor_t /*anchor*/,
                const std::string& /*value*/) override {}
  void OnSequenceStart(const YAML::Mark& mark, const std::string& /*tag*/,
                       YAML::anchor_t /*anchor*/, YAML::EmitterStyle::value /*style*/) override {
    Enter(mark);
  }
  void OnSequenceEnd() override { --depth_; }
  void OnMapStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t /*anchor*/,
                  YAML::EmitterStyle::value /*style*/) override {
    Enter(mark);
  }
  void OnMapEnd() override { --depth_; }

 private:
  void Enter(const YAML::Mark& mark) {
    if (++depth_ > kDepthMax) throw YAML::ParserException(mark, "nested too deeply");
  }

  int depth_ = 0;
  int documents_ = 0;
};

// Throws YAML::ParserException at the first thing that no configuration needs.
void RefuseHostileYaml(const std::string& text) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  HostileYamlFinder finder;
  while (parser.HandleNextDocument(finder)) {
  }
}

}  // namespace

absl::Status ConfigTable::Parse(std::string_view yaml, std::string_view file_name,
                                ConfigPlaces* places) const {
  Mistakes mistakes(file_name);
  ConfigPlaces unasked;
  if (yaml.size() > kYamlBytesMax) {
    mistakes.Add(YAML::Mark::null_mark(), "",
                 absl::StrCat("expected at most ", FormatBytes(kYamlBytesMax)));
    return mistakes.ToStatus();
  }
  try {
    const std::string text(yaml);
    RefuseHostileYaml(text);
    const YAML::Node root = YAML::Load(text);
    if (!root.IsNull())
      Reader(mistakes, places != nullptr ? *places : unasked).ReadMap(root, "", entries_);
  } catch (const YAML::Exception& error) {
    mistakes.Add(error.mark, "", absl::StrCat("not valid YAML: ", error.msg));
  }
  return mistakes.ToStatus();
}

}  // namespace kavern
