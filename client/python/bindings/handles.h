// Python's handles on the client's objects: what keeps what alive, and who may touch it when.
#ifndef KAVERN_CLIENT_PYTHON_BINDINGS_HANDLES_H_
#define KAVERN_CLIENT_PYTHON_BINDINGS_HANDLES_H_

#include <atomic>
#include <memory>
#include <mutex>

#include "client/python/bindings/bindings.h"

namespace kavern::python {

// A namespace and the client that it may not outlive.
struct NamespaceHandle {
  std::shared_ptr<Client> client;
  std::shared_ptr<Namespace> ns;
};

// Adds what a namespace knows of conversations.
void BindConversations(nb::module_& module, nb::class_<NamespaceHandle>& ns);

// Adds plans, and reports of timings.
void BindPlan(nb::module_& module, nb::class_<NamespaceHandle>& ns);

// How many Python objects look at memory of one lease. Outlives the lease while they do.
using Views = std::shared_ptr<std::atomic<std::int64_t>>;

// What a view's consumers hold as its owner: it keeps the lease, and counts for one view of it.
struct ViewOwner {
  ViewOwner(nb::object lease_object, Views lease_views)
      : lease(std::move(lease_object)), views(std::move(lease_views)) {}
  ViewOwner(const ViewOwner&) = delete;
  ViewOwner& operator=(const ViewOwner&) = delete;
  ~ViewOwner() { views->fetch_sub(1); }

  const nb::object lease;
  const Views views;
};

inline absl::Status LeaseIsOver() {
  return absl::FailedPreconditionError("the lease was released");
}

// A lease of the C++ client, which is for one thread at a time, made safe for Python's threads. The
// lock is taken without the interpreter's.
template <typename Lease>
class LeaseHandle {
 public:
  LeaseHandle(NamespaceHandle owner, Lease lease, std::size_t size)
      : owner_(std::move(owner)), lease_(std::move(lease)), size_(size) {}

  LeaseHandle(const LeaseHandle&) = delete;
  LeaseHandle& operator=(const LeaseHandle&) = delete;
  // Gives the lease back, which may take a call.
  ~LeaseHandle() {
    With([](Lease& lease) { lease = Lease(); });
  }

  std::size_t size() const { return size_; }

  // Calls `use` with the lease, without the interpreter's lock.
  template <typename Use>
  auto With(Use&& use) {
    nb::gil_scoped_release unlocked;
    std::lock_guard lock(mu_);
    return use(lease_);
  }

  // As With, of a lease that is not over: FailedPrecondition when it is.
  template <typename Use>
  auto WhileHeld(Use&& use) {
    bool held = false;
    auto result = With([&](Lease& lease) {
      held = !over_;
      return held ? use(lease) : decltype(use(lease))();
    });
    if (!held) Check(LeaseIsOver());
    return result;
  }
  // Whether it was released, committed or aborted. Inside With.
  bool over() const { return over_; }

  // As With, for what makes the lease's memory go away: BufferError while views are alive.
  template <typename Ending>
  absl::Status End(Ending&& end) {
    bool viewed = false;
    absl::Status status = With([&](Lease& lease) {
      viewed = views_->load() > 0;
      if (viewed) return absl::OkStatus();
      over_ = true;  // whatever the daemon says
      return end(lease);
    });
    if (viewed) {
      throw nb::buffer_error(
          "views of the leased memory are alive: drop the arrays that were made of it first");
    }
    return status;
  }

  // What `memory` says of the lease, and a count for a view of it. Empty memory is not counted.
  template <typename Memory>
  auto BeginView(Memory&& memory) {
    return With([&](Lease& lease) {
      const auto bytes = memory(lease);
      if (!bytes.empty()) views_->fetch_add(1);
      return bytes;
    });
  }
  const Views& views() const { return views_; }

 private:
  const NamespaceHandle owner_;
  const Views views_ = std::make_shared<std::atomic<std::int64_t>>(0);
  std::mutex mu_;
  Lease lease_;
  bool over_ = false;  // guarded by mu_
  const std::size_t size_;
};

using StoreLeaseHandle = LeaseHandle<StoreLease>;
using FetchLeaseHandle = LeaseHandle<FetchLease>;

}  // namespace kavern::python

#endif  // KAVERN_CLIENT_PYTHON_BINDINGS_HANDLES_H_
