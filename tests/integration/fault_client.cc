// A worker that stops at a named point, to be killed there:
//
//   fault_client ADDRESS ACTION [TENANT]
//
// It says "ready" on stdout when it is there, then waits for a line on stdin.
//   hold-begun      has extents for 8 blocks and wrote nothing
//   hold-writing    has written half of them, and keeps writing
//   hold-filled     has filled all of them and not committed
//   hold-reading    holds a read lease on chain 1, which it stored before, and keeps reading
//   all-slots       holds write leases on as much as it gets
//   load            stores and fetches for ever; says "wrong" if a byte is
#include <atomic>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <thread>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

constexpr std::size_t kBlocks = 8;

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "fault_client: %s\n", status.ToString().c_str());
  return 1;
}

void SayReadyAndWait() {
  std::printf("ready\n");
  std::fflush(stdout);
  std::string line;
  std::getline(std::cin, line);
}

int HoldStore(Namespace& ns, const std::string& action) {
  const auto keys = TestKeys(ns.fingerprint(), 1, kBlocks);
  auto lease = ns.BeginStore({.keys = keys});
  if (!lease.ok()) return Fail(lease.status());
  std::atomic<bool> stop = false;
  std::thread writer;
  if (action == "hold-writing") {
    writer = std::thread([&] {
      for (std::uint8_t byte = 0; !stop; ++byte) {
        for (std::size_t i = 0; i < kBlocks / 2; ++i) {
          std::memset(lease->bytes(i).data(), byte, lease->bytes(i).size());
        }
      }
    });
  } else if (action == "hold-filled") {
    std::vector<std::byte> payload(kBlockBytes);
    const ConstBuffer piece(payload);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      if (absl::Status status = lease->Fill(i, {&piece, 1}); !status.ok()) return Fail(status);
    }
  }
  SayReadyAndWait();
  stop = true;
  if (writer.joinable()) writer.join();
  return 0;
}

int HoldFetch(Namespace& ns) {
  const auto keys = TestKeys(ns.fingerprint(), 1, kBlocks);
  if (auto stored = StorePattern(ns, keys); !stored.ok()) return Fail(stored.status());
  auto lease = ns.Fetch({.keys = keys});
  if (!lease.ok()) return Fail(lease.status());
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    std::vector<std::byte> payload(kBlockBytes);
    const MutableBuffer piece(payload);
    while (!stop) {
      for (std::size_t i = 0; i < kBlocks; ++i) (void)lease->CopyTo(i, {&piece, 1});
    }
  });
  SayReadyAndWait();
  stop = true;
  reader.join();
  return 0;
}

int HoldAllSlots(Namespace& ns) {
  std::vector<StoreLease> leases;
  for (std::uint32_t chain = 1000;; ++chain) {
    const auto keys = TestKeys(ns.fingerprint(), chain, 64);
    auto lease = ns.BeginStore({.keys = keys});
    if (!lease.ok()) return Fail(lease.status());
    const bool declined = lease->outcomes().back() == StoreOutcome::kDeclined;
    leases.push_back(*std::move(lease));
    if (declined) break;
  }
  SayReadyAndWait();
  return 0;
}

int Load(Namespace& ns) {
  SayReadyAndWait();
  for (std::uint32_t chain = 0;; chain = (chain + 1) % 40) {
    const auto keys = TestKeys(ns.fingerprint(), chain, 4 * kBlocks);
    (void)StorePattern(ns, keys);
    const Fetched fetched = FetchPattern(ns, keys);
    if (fetched.wrong_bytes > 0) {
      std::printf("wrong\n");
      std::fflush(stdout);
    }
  }
}

int Main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string action = argv[2];
  ClientOptions options;
  options.address = argv[1];
  if (argc > 3) options.tenant = argv[3];
  auto client = Client::Create(options);
  if (!client.ok()) return Fail(client.status());
  if (absl::Status status = (*client)->WaitUntilAttached(std::chrono::seconds(10)); !status.ok()) {
    return Fail(status);
  }
  auto ns = (*client)->OpenNamespace(TestSpec());
  if (!ns.ok()) return Fail(ns.status());
  if (action == "hold-reading") return HoldFetch(**ns);
  if (action == "all-slots") return HoldAllSlots(**ns);
  if (action == "load") return Load(**ns);
  return HoldStore(**ns, action);
}

}  // namespace
}  // namespace kavern

int main(int argc, char** argv) {
  return kavern::Main(argc, argv);
}
