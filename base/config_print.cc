// Printing of a ConfigTable, as YAML that parses back.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/config_table.h"
#include "base/units.h"

namespace kavern {
namespace {

std::string YamlText(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted.push_back('\\');
    if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&quoted, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

struct Printer {
  std::string operator()(const ConfigEntry::Bytes& entry) const {
    const std::string text = FormatBytes(*entry.target);
    const auto back = ParseBytes(text);
    return back.ok() && *back == *entry.target ? text : absl::StrCat(*entry.target);
  }
  std::string operator()(const ConfigEntry::Duration& entry) const {
    return FormatDuration(*entry.target);
  }
  std::string operator()(const ConfigEntry::Count& entry) const {
    return absl::StrCat(*entry.target);
  }
  std::string operator()(const ConfigEntry::Flag& entry) const {
    return *entry.target ? "true" : "false";
  }
  std::string operator()(const ConfigEntry::Text& entry) const { return YamlText(*entry.target); }
  std::string operator()(const ConfigEntry::Choice& entry) const {
    // A word that YAML would read as a truth value stays text.
    return *entry.target == "off" || *entry.target == "on" ? YamlText(*entry.target)
                                                           : *entry.target;
  }
  std::string operator()(const ConfigEntry::Mode& entry) const {
    return absl::StrFormat("\"%04o\"", *entry.target);
  }
  std::string operator()(const ConfigEntry::CountList& entry) const {
    return absl::StrCat("[", absl::StrJoin(*entry.target, ", "), "]");
  }
  std::string operator()(const ConfigEntry::List& entry) const {
    std::string text;
    for (std::size_t i = 0; i < entry.size(); ++i) {
      const char* lead = "\n  - ";
      for (const ConfigEntry& field : entry.at(i)) {
        absl::StrAppend(&text, lead, field.path, ": ", std::visit(Printer{}, field.value));
        lead = "\n    ";
      }
    }
    return text.empty() ? "[]" : text;
  }
};

void PrintComment(const std::string& doc, const std::string& indent, std::string* out) {
  constexpr std::size_t kWidth = 96;
  std::string line = indent + "#";
  std::size_t at = 0;
  while (at < doc.size()) {
    std::size_t end = doc.find(' ', at);
    if (end == std::string::npos) end = doc.size();
    const std::string word = doc.substr(at, end - at);
    if (line.size() + 1 + word.size() > kWidth) {
      absl::StrAppend(out, line, "\n");
      line = indent + "#";
    }
    absl::StrAppend(&line, " ", word);
    at = end + 1;
  }
  absl::StrAppend(out, line, "\n");
}

}  // namespace

std::string ConfigTable::Print() const {
  std::string out;
  std::vector<std::string> section;
  for (const ConfigEntry& entry : entries_) {
    std::vector<std::string> path = absl::StrSplit(entry.path, '.');
    const std::string name = path.back();
    path.pop_back();
    std::size_t shared = 0;
    while (shared < path.size() && shared < section.size() && path[shared] == section[shared]) {
      ++shared;
    }
    if (!out.empty() && (shared < path.size() || path.size() < section.size())) out += "\n";
    for (std::size_t level = shared; level < path.size(); ++level) {
      absl::StrAppend(&out, std::string(2 * level, ' '), path[level], ":\n");
    }
    section = path;
    const std::string indent(2 * path.size(), ' ');
    PrintComment(entry.doc, indent, &out);
    const std::string value = std::visit(Printer{}, entry.value);
    absl::StrAppend(&out, indent, name, ":", value.front() == '\n' ? "" : " ", value, "\n");
  }
  return out;
}

}  // namespace kavern
