// Early return on failure, for absl::Status and absl::StatusOr.
#ifndef KAVERN_BASE_STATUS_MACROS_H_
#define KAVERN_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function when `expr`, an absl::Status, is not OK.
#define KAVERN_RETURN_IF_ERROR(expr)                                  \
  do {                                                                \
    if (absl::Status kavern_status_ = (expr); !kavern_status_.ok()) { \
      return kavern_status_;                                          \
    }                                                                 \
  } while (false)

#define KAVERN_CONCAT_INNER_(a, b) a##b
#define KAVERN_CONCAT_(a, b) KAVERN_CONCAT_INNER_(a, b)

// KAVERN_ASSIGN_OR_RETURN(auto x, F()): x = the value of F(), or returns F()'s status.
#define KAVERN_ASSIGN_OR_RETURN(lhs, expr) \
  KAVERN_ASSIGN_OR_RETURN_IMPL_(KAVERN_CONCAT_(kavern_statusor_, __LINE__), lhs, expr)
// NOLINTBEGIN(bugprone-macro-parentheses): `lhs` may be a declaration, and names take no
// parentheses.
#define KAVERN_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                                  \
  if (!statusor.ok()) {                                    \
    return std::move(statusor).status();                   \
  }                                                        \
  lhs = *std::move(statusor)
// NOLINTEND(bugprone-macro-parentheses)

#endif  // KAVERN_BASE_STATUS_MACROS_H_
