// Configuration from one table: parsed, validated, defaulted, documented and printed from the same
// rows.
#ifndef KAVERN_BASE_CONFIG_TABLE_H_
#define KAVERN_BASE_CONFIG_TABLE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern {

// One key of a YAML file, bound to the variable that it sets. `path` is dotted ("ram.capacity").
struct ConfigEntry {
  struct Bytes {
    std::uint64_t* target;
    std::uint64_t min, max;
  };
  struct Duration {
    std::chrono::milliseconds* target;
    std::chrono::milliseconds min, max;
  };
  struct Count {
    std::uint64_t* target;
    std::uint64_t min, max;
  };
  struct Flag {
    bool* target;
  };
  struct Text {
    std::string* target;
    // Optional; InvalidArgument's message is what was expected ("an absolute path").
    std::function<absl::Status(const std::string&)> check;
  };
  struct Choice {
    std::string* target;
    std::vector<std::string> choices;
  };
  // Octal file mode, written as a quoted string ("0660").
  struct Mode {
    std::uint32_t* target;
  };
  // A list of mappings. Each item is read by a table of its own, made by `row`: it appends an
  // element to its container and returns the entries bound to it. `print` gives the entries of
  // element i, for printing.
  struct List {
    std::function<void()> clear;
    std::function<std::vector<ConfigEntry>()> append;
    std::function<std::size_t()> size;
    std::function<std::vector<ConfigEntry>(std::size_t)> at;
  };
  // A list of whole numbers.
  struct CountList {
    std::vector<std::uint64_t>* target;
    std::uint64_t min, max;
  };

  std::string path;
  std::variant<Bytes, Duration, Count, Flag, Text, Choice, Mode, List, CountList> value;
  std::string doc;  // one or more sentences, printed as the comment above the key
};

// Where a file gives each key: "tenants[0].name" -> "kavern.yaml:12:9".
using ConfigPlaces = std::map<std::string, std::string>;

// The rows of one configuration. The variables' values at construction are the defaults.
class ConfigTable {
 public:
  explicit ConfigTable(std::vector<ConfigEntry> entries) : entries_(std::move(entries)) {}

  // Sets the variables from YAML. `file_name` is used in messages only. InvalidArgument:
  // "kavern.yaml:12:3: ram.capcity: unknown key; did you mean ram.capacity?" or
  // "kavern.yaml:7:13: ram.capacity: got \"lots\", expected a size such as 64GiB, at least 64 MiB".
  // All mistakes are reported, one a line, not only the first. A key given twice is a mistake.
  // The places of all keys that it read go to `places`, replacing earlier ones: for mistakes that
  // no single entry can see.
  absl::Status Parse(std::string_view yaml, std::string_view file_name,
                     ConfigPlaces* places = nullptr) const;

  // Commented YAML with the present values; parses back to the same values.
  std::string Print() const;

  const std::vector<ConfigEntry>& entries() const { return entries_; }

 private:
  std::vector<ConfigEntry> entries_;
};

}  // namespace kavern

#endif  // KAVERN_BASE_CONFIG_TABLE_H_
