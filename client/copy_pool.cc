#include "client/copy_pool.h"
#include "base/named_thread.h"

namespace kavern::client {

CopyPool::CopyPool(int threads) {
  for (int i = 1; i < threads; ++i)
    threads_.push_back(NamedThread("kavern-copy", [this] { ThreadLoop(); }));
}

CopyPool::~CopyPool() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    batch_begins_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void CopyPool::Run(std::size_t count, const std::function<void(std::size_t)>& work) {
  if (threads_.empty() || count <= 1) {
    for (std::size_t i = 0; i < count; ++i) work(i);
    return;
  }
  MutexLock batch(batch_mu_);
  MutexLock lock(mu_);
  work_ = &work;
  next_ = 0;
  count_ = count;
  batch_begins_.NotifyAll();
  WorkLocked();
  while (running_ > 0) batch_ends_.Wait(mu_);
  work_ = nullptr;
}

void CopyPool::WorkLocked() {
  while (next_ < count_) {
    const std::size_t item = next_++;
    const std::function<void(std::size_t)>& work = *work_;
    ++running_;
    mu_.Unlock();
    work(item);
    mu_.Lock();
    --running_;
  }
  if (running_ == 0) batch_ends_.NotifyAll();
}

void CopyPool::ThreadLoop() {
  MutexLock lock(mu_);
  for (;;) {
    while (!stop_ && (work_ == nullptr || next_ >= count_)) batch_begins_.Wait(mu_);
    if (stop_) return;
    WorkLocked();
  }
}

}  // namespace kavern::client
