// How many payload bytes may be in flight at a time.
#ifndef KAVERN_SERVICE_BYTE_BUDGET_H_
#define KAVERN_SERVICE_BYTE_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>

namespace kavern::service {

// Thread-safe. Must outlive its reservations.
class ByteBudget {
 public:
  explicit ByteBudget(std::uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // Gives its bytes back when it is destroyed. Move-only.
  class Reservation {
   public:
    Reservation(Reservation&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), bytes_(other.bytes_) {}
    Reservation& operator=(Reservation&&) = delete;
    ~Reservation() {
      if (budget_ != nullptr) budget_->used_ -= bytes_;
    }

   private:
    friend class ByteBudget;
    Reservation(ByteBudget* budget, std::uint64_t bytes) : budget_(budget), bytes_(bytes) {}
    ByteBudget* budget_;
    std::uint64_t bytes_;
  };

  // Nothing, when that would pass the limit.
  [[nodiscard]] std::optional<Reservation> Reserve(std::uint64_t bytes) {
    std::uint64_t used = used_.load();
    do {
      if (bytes > bytes_max_ || used > bytes_max_ - bytes) return std::nullopt;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    return Reservation(this, bytes);
  }

  std::uint64_t used() const { return used_; }
  std::uint64_t bytes_max() const { return bytes_max_; }

 private:
  const std::uint64_t bytes_max_;
  std::atomic<std::uint64_t> used_ = 0;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_BYTE_BUDGET_H_
