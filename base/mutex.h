// Locks with thread-safety annotations.
//
// A thin wrapper over std::mutex rather than absl::Mutex: ThreadSanitizer follows pthread mutexes,
// but not the uninstrumented Abseil of the distribution, and would report a race at every use of
// its locks. clang checks the annotations (-Wthread-safety); other compilers ignore them.
#ifndef KAVERN_BASE_MUTEX_H_
#define KAVERN_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define KAVERN_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define KAVERN_THREAD_ANNOTATION(x)
#endif

#define KAVERN_CAPABILITY(x) KAVERN_THREAD_ANNOTATION(capability(x))
#define KAVERN_SCOPED_CAPABILITY KAVERN_THREAD_ANNOTATION(scoped_lockable)
#define KAVERN_GUARDED_BY(x) KAVERN_THREAD_ANNOTATION(guarded_by(x))
#define KAVERN_PT_GUARDED_BY(x) KAVERN_THREAD_ANNOTATION(pt_guarded_by(x))
#define KAVERN_REQUIRES(...) KAVERN_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define KAVERN_EXCLUDES(...) KAVERN_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define KAVERN_ACQUIRE(...) KAVERN_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define KAVERN_RELEASE(...) KAVERN_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define KAVERN_NO_THREAD_SAFETY_ANALYSIS KAVERN_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace kavern {

class CondVar;

class KAVERN_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() KAVERN_ACQUIRE() { mu_.lock(); }
  void Unlock() KAVERN_RELEASE() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class KAVERN_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mu) KAVERN_ACQUIRE(mu) : mu_(mu) { mu_.Lock(); }
  ~MutexLock() KAVERN_RELEASE() { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// A condition variable for Mutex. Waits may wake for no reason: call them in a loop over the
// condition.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  void Wait(Mutex& mu) KAVERN_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }

  // False when `deadline` passed first.
  bool WaitUntil(Mutex& mu, std::chrono::steady_clock::time_point deadline) KAVERN_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    const bool in_time = cv_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return in_time;
  }

  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace kavern

#endif  // KAVERN_BASE_MUTEX_H_
