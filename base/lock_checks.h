// Lock-order checks of libraries.
#ifndef KAVERN_BASE_LOCK_CHECKS_H_
#define KAVERN_BASE_LOCK_CHECKS_H_

#include "absl/synchronization/mutex.h"

namespace kavern {

// For the beginning of a program or of a Python extension; a library leaves it to its host. Debian
// builds Abseil with its assertions: each lock that gRPC takes then walks the stack and a graph of
// all locks taken before, behind one lock of the whole process, and a cycle, which need not be a
// deadlock, ends it.
inline void StopAbseilLockChecks() {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

}  // namespace kavern

#endif  // KAVERN_BASE_LOCK_CHECKS_H_
