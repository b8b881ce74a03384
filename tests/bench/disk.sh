#!/usr/bin/env bash
# The NVMe tier against fio, in one command: starts a daemon of its own with temporary files and
# prints the table of `kavern bench --disk`.
#
#   tests/bench/disk.sh [--dir DIR] [--bin DIR] [--set BYTES] [arguments of kavern bench, e.g. --json]
#
# --dir: a directory on the disk to measure (default: TMPDIR, else /var/tmp); takes eight sets there.
# --bin: where kavern and kavernd are (default: the release build's, else the dev build's).
# --set: what one pass moves (default 1GiB); the daemon gets RAM for three of them.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${TMPDIR:-/var/tmp}
bin=$root/build/release/bin
[[ -x $bin/kavernd ]] || bin=$root/build/dev/bin
set_bytes=1GiB
bench=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --dir) directory=$2; shift 2 ;;
    --bin) bin=$2; shift 2 ;;
    --set) set_bytes=$2; shift 2 ;;
    *) bench+=("$1"); shift ;;
  esac
done
if ! command -v fio >/dev/null; then
  echo "disk.sh: fio, the reference, is missing: deploy/install_deps.sh --tests" >&2
  exit 2
fi

number=$(numfmt --from=auto <<<"${set_bytes%B}")
work=$(mktemp -d "$directory/kavern-bench-XXXXXX")
daemon=
cleanup() {
  [[ -z $daemon ]] || { kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; }
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Both files by the same job: fully written, incompressible. Reads of extents that were reserved but
# never written do not reach the disk, and first writes to them cost more than later ones.
echo "disk.sh: preparing two files below $work" >&2
for file in "daemon:$((6 * number + (1 << 20)))" "fio:$number"; do
  fio --name=prepare --filename="$work/${file%:*}" --size="${file#*:}" --rw=write --bs=1M --iodepth=32 \
    --ioengine=io_uring --direct=1 --refill_buffers --end_fsync=1 --output="$work/prepare.log"
done
# The daemon takes no file whose first MiB holds somebody else's bytes.
dd if=/dev/zero of="$work/daemon" bs=1M count=1 conv=notrunc status=none

"$bin/kavernd" --set "listen.socket=$work/kavern.sock" --set http.address= --set log.level=warning \
  --set "ram.capacity=$((3 * number))" --set ram.region=64MiB \
  --set "nvme.devices=[{path: $work/daemon, capacity: $((6 * number + (1 << 20)))}]" \
  --set "nvme.catalog=$work/catalog" &
daemon=$!
kavern=("$bin/kavern" --address "unix://$work/kavern.sock")
"${kavern[@]}" status --wait-ms 60000 >/dev/null
"${kavern[@]}" bench --disk "$work/fio" --disk-set "$set_bytes" "${bench[@]}"
