// `kavernd store ...`: looks at the NVMe tier of a daemon that is not running.
#ifndef KAVERN_SERVICE_STORE_COMMAND_H_
#define KAVERN_SERVICE_STORE_COMMAND_H_

#include <cstdint>

#include "service/config.h"

namespace kavern::service {

struct StoreCommand {
  enum class What : std::uint8_t { kNone, kVerify, kStats, kExportCatalog };
  What what = What::kNone;
  bool json = false;              // one JSON object in place of text; export-catalog is JSON anyway
  std::uint64_t damage_max = 20;  // places that verify names
};

// Prints to stdout, and to stderr what is wrong with the request. Exit codes are those of `kavern`:
// 0 sound, 1 damage was found, 2 wrong configuration, 4 a running daemon has the store (or the
// system refuses).
int RunStoreCommand(const DaemonConfig& config, const StoreCommand& command);

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_STORE_COMMAND_H_
