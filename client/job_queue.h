// Threads that run jobs in order.
#ifndef KAVERN_CLIENT_JOB_QUEUE_H_
#define KAVERN_CLIENT_JOB_QUEUE_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace kavern::client {

// Thread-safe.
class JobQueue {
 public:
  JobQueue(const char* name, int threads);
  // Lets the jobs that run end; those that wait are dropped.
  ~JobQueue();
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  void Add(std::function<void()> job);

 private:
  void Loop();

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> jobs_ KAVERN_GUARDED_BY(mu_);
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_JOB_QUEUE_H_
