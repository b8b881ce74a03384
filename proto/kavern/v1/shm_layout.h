// Shared memory and the attach socket: what two processes agree on beside the .proto files.
// docs/PROTOCOL.md explains it; this file is the definition. Little endian, x86-64 and AArch64.
//
// Changing anything here changes kShmVersion.
#ifndef KAVERN_PROTO_V1_SHM_LAYOUT_H_
#define KAVERN_PROTO_V1_SHM_LAYOUT_H_

#include <cstddef>
#include <cstdint>

namespace kavern::shm {

inline constexpr std::uint32_t kShmVersion = 1;

// ---- Regions ----
//
// A memfd of KV slots, sealed F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, mapped read-write by the
// sessions that hold leases in it. It has no header: nothing the daemon acts on lies in memory that
// a client can write.

// ---- Directory segment ----
//
// A memfd that says which blocks of one namespace are present: a header, then `bucket_count`
// buckets. Sealed F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL once the daemon
// has mapped it, so no client can write it. A hint, never a promise: a hit is confirmed by Fetch, a
// false miss costs a recompute.

inline constexpr std::uint64_t kDirectoryMagic = 0x3152494456414b00;  // "\0KAVDIR1"

struct DirectoryHeader {
  std::uint64_t magic;           // kDirectoryMagic
  std::uint32_t version;         // kShmVersion
  std::uint32_t bucket_count;    // a power of two
  std::uint8_t fingerprint[16];  // the namespace
  std::uint64_t generation;      // of this segment among the namespace's, from 1
  std::uint32_t retired;  // atomic; 1: a successor was announced, this one is no longer updated
  std::uint32_t reserved;
  std::uint64_t entries;  // atomic; how many keys are present, for people
  std::uint8_t padding[8];
};
static_assert(sizeof(DirectoryHeader) == 64);

// The bucket array begins one page in.
inline constexpr std::size_t kDirectoryBucketsOffset = 4096;

inline constexpr int kKeysPerBucket = 3;

// One cache line with its own sequence lock. A key's home is bucket (first 8 bytes of the key,
// little endian) & (bucket_count - 1); a key that finds its home full lives in one of the next
// kProbeMax - 1 buckets (wrapping), and every full bucket that it was turned away from counts it in
// `passed`. So a reader that does not find the key goes on only while passed > 0.
//
// All fields are accessed as the atomic 64-bit words of DirectoryBucketWords.
struct DirectoryBucket {
  std::uint32_t sequence;              // odd while the daemon changes the bucket
  std::uint8_t tiers[kKeysPerBucket];  // bit set of tiers that hold the key; 0: the slot is empty
  std::uint8_t reserved;
  std::uint64_t passed;  // keys turned away here that live further on
  std::uint8_t keys[kKeysPerBucket][16];
};
static_assert(sizeof(DirectoryBucket) == 64);

// Word 0 is sequence (low half), tiers and reserved; word 1 is passed; words 2.. are the keys.
inline constexpr int kWordsPerBucket = 8;
struct DirectoryBucketWords {
  std::uint64_t words[kWordsPerBucket];
};
static_assert(sizeof(DirectoryBucketWords) == sizeof(DirectoryBucket));

inline constexpr std::uint32_t kProbeMax = 8;
// A reader that finds a bucket in change, or changed under it, this many times calls it a miss.
inline constexpr int kSequenceRetriesMax = 64;

inline constexpr std::uint8_t kTierBitHbm = 1;
inline constexpr std::uint8_t kTierBitRam = 2;
inline constexpr std::uint8_t kTierBitNvme = 4;

// ---- Attach socket ----
//
// A SOCK_SEQPACKET Unix socket at the gRPC socket's path + kAttachSuffix. One message per packet:
// AttachHeader, then the body that its type names. Descriptors travel as SCM_RIGHTS, at most one
// per message.

inline constexpr char kAttachSuffix[] = ".attach";
inline constexpr std::uint32_t kAttachMagic = 0x54414b56;  // "VKAT"
inline constexpr std::size_t kAttachMessageBytesMax = 1024;

enum class AttachType : std::uint16_t {
  kHello = 1,    // client -> daemon, first
  kWelcome = 2,  // daemon -> client, answer to kHello
  kReject = 3,   // daemon -> client, instead of kWelcome; the daemon then closes
  kRegion =
      4,  // daemon -> client, with the region's descriptor; before the RPC reply that names it
  kRegionRetired = 5,   // daemon -> client: unmap the region once no local lease is in it
  kRegionUnmapped = 6,  // client -> daemon: done
  kDirectory = 7,  // daemon -> client, with the segment's descriptor; succeeds earlier generations
  kDirectoryGone = 8,  // daemon -> client: the namespace has no directory any more; unmap it
  kDraining = 9,       // daemon -> client: no new stores or fetches, finish what you hold
};

struct AttachHeader {
  std::uint32_t magic;    // kAttachMagic
  std::uint16_t version;  // kShmVersion
  std::uint16_t type;     // AttachType
  std::uint32_t body_bytes;
  std::uint32_t reserved;
};
static_assert(sizeof(AttachHeader) == 16);

struct HelloBody {
  char tenant[64];       // NUL-padded; empty: the first tenant that the peer's credentials map to
  char client_name[64];  // NUL-padded, for logs and the session list
};
static_assert(sizeof(HelloBody) == 128);

struct WelcomeBody {
  std::uint8_t session_token[16];
  std::uint8_t incarnation[16];  // random per daemon start
  char tenant[64];               // NUL-padded: the tenant that the session acts for
  std::uint64_t daemon_pid;
  std::uint32_t operator_rights;  // 1: admin calls see the whole node
  std::uint32_t reserved;
};
static_assert(sizeof(WelcomeBody) == 112);

struct RejectBody {
  std::int32_t code;  // a gRPC status code
  std::uint32_t reserved;
  char message[496];  // NUL-padded
};
static_assert(sizeof(RejectBody) == 504);

struct RegionBody {
  std::uint64_t region_id;  // never reused within an incarnation
  std::uint64_t size_bytes;
};
static_assert(sizeof(RegionBody) == 16);

struct RegionIdBody {  // kRegionRetired, kRegionUnmapped
  std::uint64_t region_id;
};
static_assert(sizeof(RegionIdBody) == 8);

struct DirectoryBody {
  std::uint8_t fingerprint[16];
  std::uint64_t generation;
  std::uint64_t size_bytes;
};
static_assert(sizeof(DirectoryBody) == 32);

struct DirectoryGoneBody {
  std::uint8_t fingerprint[16];
  std::uint64_t generation;
};
static_assert(sizeof(DirectoryGoneBody) == 24);

}  // namespace kavern::shm

#endif  // KAVERN_PROTO_V1_SHM_LAYOUT_H_
