#include "base/nearest_word.h"

#include <algorithm>
#include <cstddef>

namespace kavern {

std::string NearestWord(std::string_view word, const std::vector<std::string>& known) {
  constexpr std::size_t kWordBytesMax = 128;
  if (word.size() > kWordBytesMax) return "";
  std::string nearest;
  // More than a third of the letters wrong is another word, not a slip.
  std::size_t best = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    std::vector<std::size_t> row(candidate.size() + 1);
    for (std::size_t j = 0; j <= candidate.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= candidate.size(); ++j) {
        const std::size_t substitute = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
      }
    }
    if (row.back() < best) {
      best = row.back();
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace kavern
