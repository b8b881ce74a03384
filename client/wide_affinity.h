// Threads that do not inherit their creator's binding to one processor.
#ifndef KAVERN_CLIENT_WIDE_AFFINITY_H_
#define KAVERN_CLIENT_WIDE_AFFINITY_H_

#include <sched.h>

#include <cstring>

namespace kavern::client {

// While it lives, the calling thread may run on every processor of the process's cpuset, and so may
// the threads that it starts, for good. Inference engines bind the thread that loads them to one
// processor, where copy threads would wait for the engine and for each other.
class WideAffinity {
 public:
  WideAffinity() {
    saved_ = sched_getaffinity(0, sizeof(before_), &before_) == 0;
    if (!saved_) return;
    cpu_set_t all;  // the kernel leaves out what the cpuset does not allow
    std::memset(&all, 0xff, sizeof(all));
    (void)sched_setaffinity(0, sizeof(all), &all);
  }
  ~WideAffinity() {
    if (saved_) (void)sched_setaffinity(0, sizeof(before_), &before_);
  }
  WideAffinity(const WideAffinity&) = delete;
  WideAffinity& operator=(const WideAffinity&) = delete;

 private:
  cpu_set_t before_ = {};
  bool saved_ = false;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_WIDE_AFFINITY_H_
