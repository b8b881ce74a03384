// What a mistyped word may have been meant to be.
#ifndef KAVERN_BASE_NEAREST_WORD_H_
#define KAVERN_BASE_NEAREST_WORD_H_

#include <string>
#include <string_view>
#include <vector>

namespace kavern {

// The member of `known` nearest to `word` by edit distance, or empty when none is near enough to be
// a typo.
std::string NearestWord(std::string_view word, const std::vector<std::string>& known);

}  // namespace kavern

#endif  // KAVERN_BASE_NEAREST_WORD_H_
