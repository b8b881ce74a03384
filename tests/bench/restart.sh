#!/usr/bin/env bash
# How long a daemon that was killed takes to serve again, and how much memory its index and its directory take: fills an
# NVMe tier with blocks of 4 KiB, kills the daemon, starts it anew, and prints what it says.
#
#   tests/bench/restart.sh [BLOCKS]        default: 1000000, about 9 GB of disk in build/
#
# Environment: KAVERN_BIN (default: build/release/bin).
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly blocks=${1:-1000000}
readonly bin=${KAVERN_BIN:-build/release/bin}
work=$(mktemp -d)
readonly work
mkdir -p build
disk=$(mktemp -d "$PWD/build/restart.XXXXXX")
readonly disk
daemon=
clean_up() {
  [[ -z $daemon ]] || kill -KILL "$daemon" 2>/dev/null || true
  rm -rf "$work" "$disk"
}
trap clean_up EXIT
export KAVERN_ADDRESS="unix://$work/kavern.sock"

# A slot is a page of header and one of payload.
readonly segment=$((64 << 20))
readonly per_segment=$(((segment - 4096) / 8192))
readonly capacity=$(((1 << 20) + (blocks / per_segment + 2) * segment))

start_daemon() {
  "$bin/kavernd" --set "listen.socket=$work/kavern.sock" --set http.address=127.0.0.1:0 --set log.level=warning \
    --set ram.capacity=512MiB --set ram.region=2MiB \
    --set "nvme.devices=[{path: $disk/nvme, capacity: $capacity}]" --set "nvme.catalog=$disk/catalog" \
    --set nvme.durability=none --set nvme.write_back_bytes_max=64MiB &
  daemon=$!
  "$bin/kavern" status --wait-ms 60000 >/dev/null
}
status() { "$bin/kavern" status --json | python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }
nvme() { status "['nvme']['$1']"; }

echo "== fill with $blocks blocks"
start_daemon
# Requests of 64 new blocks each, 12,000 blocks a second: slower than the disk, so that none is evicted unwritten.
python3 - "$blocks" >"$work/trace.jsonl" <<'PY'
import json, sys
blocks, step = int(sys.argv[1]), 64
for first in range(0, blocks, step):
    ids = list(range(first, min(first + step, blocks)))
    print(json.dumps({"timestamp": first // 12, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}))
PY
readonly layout=(--layers 1 --kv-heads 1 --head-dim 4 --dtype int8)
"$bin/kavern" replay "$work/trace.jsonl" "${layout[@]}" --speedup 1 --json >"$work/fill.json"
while [[ $(nvme write_back_blocks) -gt 0 ]]; do sleep 0.5; done
stored=$(nvme blocks)

echo "== kill it, and start it again"
kill -KILL "$daemon"
{ wait "$daemon" || true; } 2>/dev/null
started=$(date +%s.%N)
start_daemon
answered=$(date +%s.%N)
while [[ $(nvme recovering) == True ]]; do sleep 0.02; done
served=$(date +%s.%N)
# The last request of the trace: a namespace is opened, matched and fetched.
tail -n 1 "$work/trace.jsonl" >"$work/last.jsonl"
"$bin/kavern" replay "$work/last.jsonl" "${layout[@]}" --json >"$work/last.json"
first=$(date +%s.%N)

python3 - "$work" "$stored" "$(nvme blocks)" "$(nvme recovery_seconds)" "$(nvme index_bytes)" \
  "$(status "['directory_bytes']")" "$started" "$answered" "$served" "$first" <<'PY'
import json, sys
work, stored, found, recovery, index_bytes, directory_bytes, started, answered, served, first = sys.argv[1:]
last = json.load(open(f"{work}/last.json"))
found, index_bytes, directory_bytes = int(found), int(index_bytes), int(directory_bytes)
print(f"blocks on disk before the kill  {int(stored):,}")
print(f"found after it                  {found:,}")
print(f"recovery, as the daemon says    {float(recovery):.2f} s")
print(f"first answer to a call          {float(answered) - float(started):.2f} s after the start")
print(f"everything found                {float(served) - float(started):.2f} s after the start")
print(f"first fetch, by a new client    {float(first) - float(started):.2f} s after the start, "
      f"{last['hit_blocks']} of {last['blocks']} blocks, {last['wrong_bytes']} wrong bytes")
print(f"index                           {index_bytes / max(1, found):.1f} B a block")
print(f"directory                       {directory_bytes / max(1, found):.1f} B a block")
PY
