#!/usr/bin/env bash
# The main job, from nothing: installs Debian's packages, builds a release, starts kavernd, and replays
# conversations against it, verifying every byte. Exits non-zero when a byte is wrong or anything fails.
#
#   deploy/quickstart.sh
#
# Environment: KAVERN_JOBS (default: processors) bounds parallel compilation; KAVERN_RAM (default: 2GiB) is the size
# of the RAM tier.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly bin=build/release/bin
readonly jobs=${KAVERN_JOBS:-$(nproc)}
readonly ram=${KAVERN_RAM:-2GiB}
work=$(mktemp -d)
readonly work
daemon=

say() { printf '\n== %s\n' "$*"; }

stop_daemon() {
  [[ -n $daemon ]] || return 0
  kill -TERM "$daemon" 2>/dev/null || true
  local code=0
  wait "$daemon" || code=$?
  daemon=
  return "$code"
}

clean_up() {
  stop_daemon || true
  rm -rf "$work"
}
trap clean_up EXIT

say "install what is missing"
deploy/install_deps.sh

say "build (minutes the first time)"
cmake --preset release -DKAVERN_BUILD_TESTS=OFF >"$work/configure.log" || {
  cat "$work/configure.log" >&2
  exit 1
}
cmake --build build/release --parallel "$jobs" --target kavernd kavern

say "start kavernd with $ram of RAM"
export KAVERN_ADDRESS="unix://$work/kavern.sock"
"$bin/kavernd" --config deploy/kavern.example.yaml --set "listen.socket=$work/kavern.sock" \
  --set http.address=127.0.0.1:0 --set "ram.capacity=$ram" &
daemon=$!
"$bin/kavern" status --wait-ms 60000 >/dev/null

say "generate conversations"
"$bin/kavern" trace generate --conversations 300 --output "$work/trace.jsonl"

say "replay them: match, fetch and verify the cached prefix, store the rest"
# One layer of the model in 32: blocks of 2 MiB, so that the working set is larger than the RAM tier and both fit here.
"$bin/kavern" replay "$work/trace.jsonl" --model llama-3-8b --scale-layers 0.03125 --workers 2

say "what the daemon says"
"$bin/kavern" status

say "stop kavernd"
stop_daemon
echo "done: every byte was what had been stored"
