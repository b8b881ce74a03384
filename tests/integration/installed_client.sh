#!/usr/bin/env bash
# A program outside the tree builds against the installed library, and runs against the installed daemon. The
# installed unit names the files that were installed, whatever the prefix.
#
#   tests/integration/installed_client.sh [BUILD_DIRECTORY]     default: build/dev, else a release is built
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
daemon=
clean_up() {
  if [[ -n $daemon ]]; then
    kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap clean_up EXIT

fail() { echo "installed_client: $*" >&2; exit 1; }

build=${1:-build/dev}
if [[ $# -eq 0 && ! -x $build/bin/kavernd ]]; then
  build=build/release
  cmake --preset release -DKAVERN_BUILD_TESTS=OFF
  cmake --build "$build" --parallel "${KAVERN_JOBS:-$(nproc)}"
fi

# expect_unit ROOT BINARY CONFIG: the one unit under ROOT starts this binary with this configuration.
expect_unit() {
  local unit
  unit=$(find "$1" -name kavernd.service)
  grep -qxF "ExecStart=$2 --config $3" "$unit" || fail "$unit: $(grep ExecStart= "$unit"), expected $2 and $3"
}

prefix=$work/usr
cmake --install "$build" --prefix "$prefix" >"$work/install.log"
if grep -E '^-- (Installing|Up-to-date): ' "$work/install.log" | grep -vF ": $prefix/"; then
  fail "the above lies outside the prefix"
fi
expect_unit "$prefix" "$prefix/sbin/kavernd" "$prefix/etc/kavern/kavern.yaml"

# As a distribution's package: under /usr the configuration belongs in /etc.
DESTDIR="$work/package" cmake -D CMAKE_INSTALL_PREFIX=/usr -P "$build/deploy/cmake_install.cmake" >>"$work/install.log"
expect_unit "$work/package" /usr/sbin/kavernd /etc/kavern/kavern.yaml
[[ -f $work/package/etc/kavern/kavern.yaml ]] || fail "the package has no /etc/kavern/kavern.yaml"

mkdir "$work/program"
cp client/examples/worker.cc "$work/program/"
cat >"$work/program/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(worker LANGUAGES CXX)
find_package(Kavern 0.1 REQUIRED CONFIG)
add_executable(worker worker.cc)
target_link_libraries(worker PRIVATE Kavern::client)
CMAKE
cmake -S "$work/program" -B "$work/program/build" -G Ninja -D CMAKE_PREFIX_PATH="$prefix"
cmake --build "$work/program/build"

address="unix://$work/kavern.sock"
"$prefix/sbin/kavernd" --config "$prefix/etc/kavern/kavern.yaml" --set "listen.socket=$work/kavern.sock" \
  --set http.address= --set ram.capacity=64MiB --set ram.region=2MiB --set ram.reserve=0 &
daemon=$!
"$prefix/bin/kavern" --address "$address" status --wait-ms 20000 >/dev/null

expect_output() {
  local said
  said=$("$work/program/build/worker" "$address") || fail "the program failed: $said"
  [[ $said == "$1" ]] || fail "expected: $1, the program said: $said"
}
expect_output $'16 blocks: 0 fetched, 16 computed\nnext turn: 16 to fetch'
expect_output $'16 blocks: 16 fetched, 0 computed\nnext turn: 16 to fetch'

kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
daemon=
[[ $status -eq 0 ]] || fail "the daemon ended with $status"
echo "the installed library works"
