#!/usr/bin/env bash
# The main job, from nothing: installs Debian's packages, builds a release, starts kavernd, and replays
# conversations against it, verifying every byte. In the middle of that the daemon is killed with SIGKILL and started
# again: what it had written to its NVMe tier is there. Exits non-zero when a byte is wrong or anything fails.
#
#   deploy/quickstart.sh               replays generated conversations
#   deploy/quickstart.sh --with-vllm   then serves a real chat model with vLLM, kills it, and takes its conversation back
#
# Environment: KAVERN_JOBS (default: processors) bounds parallel compilation; KAVERN_RAM (default: 2GiB) is the size
# of the RAM tier, KAVERN_NVME (default: 6GiB) that of the NVMe tier, a file in KAVERN_NVME_DIR (default: build; its
# file system needs direct I/O).
set -euo pipefail
cd "$(dirname "$0")/.."

with_vllm=
for argument in "$@"; do
  case "$argument" in
    --with-vllm) with_vllm=yes ;;
    *)
      echo "quickstart.sh: unknown argument $argument; known: --with-vllm" >&2
      exit 2
      ;;
  esac
done
readonly with_vllm

readonly bin=build/release/bin
readonly jobs=${KAVERN_JOBS:-$(nproc)}
readonly ram=${KAVERN_RAM:-2GiB}
readonly nvme=${KAVERN_NVME:-6GiB}
work=$(mktemp -d)
readonly work
mkdir -p "${KAVERN_NVME_DIR:-build}"
disk=$(mktemp -d "$(realpath "${KAVERN_NVME_DIR:-build}")/quickstart.XXXXXX")
readonly disk
daemon=
replay=

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
  if [[ -n $replay ]]; then kill "$replay" 2>/dev/null || true; fi
  stop_daemon || true
  rm -rf "$work" "$disk"
}
trap clean_up EXIT

start_daemon() {
  "$bin/kavernd" --config deploy/kavern.example.yaml --set "listen.socket=$work/kavern.sock" \
    --set http.address=127.0.0.1:0 --set "ram.capacity=$ram" \
    --set "nvme.devices=[{path: $disk/nvme, capacity: $nvme}]" --set "nvme.catalog=$disk/catalog" &
  daemon=$!
  "$bin/kavern" status --wait-ms 60000 >/dev/null
}

# A number of `kavern status --json`; 0 while no daemon answers.
count_of() {
  "$bin/kavern" status --json 2>/dev/null | sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" | head -n 1 | grep . || echo 0
}

say "install what is missing"
deploy/install_deps.sh ${with_vllm:+--python}

say "build (minutes the first time)"
cmake --preset release -DKAVERN_BUILD_TESTS=OFF >"$work/configure.log" || {
  cat "$work/configure.log" >&2
  exit 1
}
cmake --build build/release --parallel "$jobs" --target kavernd kavern

say "start kavernd with $ram of RAM and $nvme of NVMe"
export KAVERN_ADDRESS="unix://$work/kavern.sock"
start_daemon

say "generate conversations"
"$bin/kavern" trace generate --conversations 300 --output "$work/trace.jsonl"

say "replay them: match, fetch and verify the cached prefix, store the rest"
# One layer of the model in 32: blocks of 2 MiB, so that the working set is larger than the RAM tier and both fit here.
"$bin/kavern" replay "$work/trace.jsonl" --model llama-3-8b --scale-layers 0.03125 --workers 2 \
  --await-daemon-ms 60000 >"$work/report.txt" &
replay=$!
# About 2,100 blocks are stored in all.
while [[ $(count_of store_blocks) -lt 1000 ]] && kill -0 "$replay" 2>/dev/null; do sleep 0.1; done
kill -KILL "$daemon"
{ wait "$daemon" || true; } 2>/dev/null
say "killed kavernd in the middle of it; start it again"
start_daemon
code=0
wait "$replay" || code=$?
replay=
cat "$work/report.txt"
[[ $code -eq 0 ]] || exit "$code"
if ! grep -q "daemon restarts" "$work/report.txt"; then
  echo "quickstart.sh: the replay ended before the daemon was killed" >&2
  exit 1
fi

if [[ -n $with_vllm ]]; then
  say "vLLM for processors, its chat model and Kavern's Python package (about 4 GB the first time)"
  deploy/vllm/install.sh build/vllm
  model=build/models/smollm2-135m-instruct
  build/vllm/bin/python deploy/vllm/prepare_chat_model.py "$model"

  say "a conversation of six turns; the engine is killed before the fifth, engine and daemon before the last"
  mkdir "$work/chat"
  python3 deploy/vllm/demo.py --python build/vllm/bin/python --model "$model" --binaries "$bin" --directory "$work/chat"
fi

say "what the daemon says"
"$bin/kavern" status

say "stop kavernd"
stop_daemon
echo "done: every byte was what had been stored"
