#include "service/session/store_news.h"

#include <utility>

namespace kavern::service {

void StoreNews::Directory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                          std::uint64_t size_bytes, UniqueFd fd) {
  if (!fd.valid()) return;
  DirectoryNews& news = directories_[fingerprint];
  if (generation < news.generation) return;
  news = {generation, size_bytes, std::make_shared<const UniqueFd>(std::move(fd))};
}

void StoreNews::DirectoryGone(const NamespaceFingerprint& fingerprint, std::uint64_t generation) {
  DirectoryNews& news = directories_[fingerprint];
  if (generation < news.generation) return;
  news = {generation, 0, nullptr};
}

}  // namespace kavern::service
