#!/usr/bin/env bash
# A program outside the tree builds against the installed library, and runs against the installed daemon.
#
#   tests/integration/installed_client.sh [BUILD_DIRECTORY]     default: build/dev
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/dev}
work=$(mktemp -d)
daemon=
trap '[[ -z $daemon ]] || kill -KILL "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/usr" >"$work/install.log"

mkdir "$work/program"
cp client/examples/worker.cc "$work/program/"
cat >"$work/program/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(worker LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
find_package(Kavern 0.1 REQUIRED CONFIG)
add_executable(worker worker.cc)
target_link_libraries(worker PRIVATE Kavern::client)
CMAKE
cmake -S "$work/program" -B "$work/program/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/usr"
cmake --build "$work/program/build"

address="unix://$work/kavern.sock"
"$work/usr/sbin/kavernd" --config "$work/usr/etc/kavern/kavern.yaml" --set "listen.socket=$work/kavern.sock" \
  --set http.address= --set ram.capacity=64MiB --set ram.region=2MiB --set ram.reserve=0 &
daemon=$!
"$work/usr/bin/kavern" --address "$address" status --wait-ms 20000 >/dev/null

expect() {
  local said
  said=$("$work/program/build/worker" "$address")
  [[ $said == "$1" ]] || { echo "expected: $1, the program said: $said" >&2; exit 1; }
}
expect "16 blocks: 0 fetched, 16 computed"
expect "16 blocks: 16 fetched, 0 computed"

kill -TERM "$daemon"
wait "$daemon"
daemon=
echo "the installed library works"
