#include "client/job_queue.h"

#include <utility>

#include "base/named_thread.h"

namespace kavern::client {

JobQueue::JobQueue(const char* name, int threads) {
  for (int i = 0; i < threads; ++i) threads_.push_back(NamedThread(name, [this] { Loop(); }));
}

JobQueue::~JobQueue() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    jobs_.clear();
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void JobQueue::Add(std::function<void()> job) {
  MutexLock lock(mu_);
  jobs_.push_back(std::move(job));
  changed_.NotifyOne();
}

void JobQueue::Loop() {
  for (;;) {
    std::function<void()> job;
    {
      MutexLock lock(mu_);
      while (!stop_ && jobs_.empty()) changed_.Wait(mu_);
      if (stop_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace kavern::client
