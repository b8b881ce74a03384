// Threads that copy and checksum the parts of one batch.
#ifndef KAVERN_CLIENT_COPY_POOL_H_
#define KAVERN_CLIENT_COPY_POOL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace kavern::client {

// A batch is a number of independent items, handed out one by one to the calling thread and the
// pool's own, so that a slow one holds up nobody. Batches of several callers run one after the
// other. Thread-safe.
class CopyPool {
 public:
  // `threads` >= 1 copy, the caller of Run included; so 1 starts none.
  explicit CopyPool(int threads);
  ~CopyPool();
  CopyPool(const CopyPool&) = delete;
  CopyPool& operator=(const CopyPool&) = delete;

  // Calls work(i) once for every i < count, from several threads at a time, and returns after the
  // last. `work` must not throw and must not call Run.
  void Run(std::size_t count, const std::function<void(std::size_t)>& work);

 private:
  void ThreadLoop();
  // Takes items of the present batch until there is none; entered and left with the lock held.
  void WorkLocked() KAVERN_REQUIRES(mu_);

  Mutex batch_mu_;  // one batch at a time; taken before mu_
  Mutex mu_;
  CondVar batch_begins_;
  CondVar batch_ends_;
  const std::function<void(std::size_t)>* work_ KAVERN_GUARDED_BY(mu_) = nullptr;
  std::size_t next_ KAVERN_GUARDED_BY(mu_) = 0;
  std::size_t count_ KAVERN_GUARDED_BY(mu_) = 0;
  std::size_t running_ KAVERN_GUARDED_BY(mu_) = 0;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_COPY_POOL_H_
