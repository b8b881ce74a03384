// Threads that `top -H` and debuggers show by name.
#ifndef KAVERN_BASE_NAMED_THREAD_H_
#define KAVERN_BASE_NAMED_THREAD_H_

#include <pthread.h>

#include <thread>
#include <utility>

namespace kavern {

// `name`: a literal of at most 15 characters. Of threads inside somebody else's process it begins
// with "kavern-".
template <typename Work>
std::thread NamedThread(const char* name, Work work) {
  return std::thread([name, work = std::move(work)]() mutable {
    (void)pthread_setname_np(pthread_self(), name);
    work();
  });
}

}  // namespace kavern

#endif  // KAVERN_BASE_NAMED_THREAD_H_
