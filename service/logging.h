// Logging for the daemon: spdlog's default logger, set up once.
#ifndef KAVERN_SERVICE_LOGGING_H_
#define KAVERN_SERVICE_LOGGING_H_

#include <string>

namespace kavern::service {

// Messages go to stderr, asynchronously: a full pipe never holds up a call. `level` and `format` as
// in the configuration (log.level, log.format).
void StartLogging(const std::string& level, const std::string& format);

// Writes out what is queued. No logging after it.
void StopLogging();

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_LOGGING_H_
