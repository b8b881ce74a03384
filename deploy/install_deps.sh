#!/usr/bin/env bash
# Installs what Kavern is built and tested with, from Debian's packages. Needs root or sudo; does nothing
# when everything is there. `--tests` adds what only the tests and linters need,
# `--python` what the Python package is built with.
set -euo pipefail

build_packages=(
  cmake ninja-build ccache g++ pkg-config git ca-certificates
  libgrpc++-dev libgrpc-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  libisal-dev libssl-dev libyaml-cpp-dev libspdlog-dev prometheus-cpp-dev
  libcli11-dev nlohmann-json3-dev liburing-dev librocksdb-dev
)
python_packages=(python3 python3-venv python3-dev)
test_packages=(
  clang clang-tidy-22 clang-format libclang-rt-14-dev "${python_packages[@]}"
  libgtest-dev libgmock-dev libbenchmark-dev curl fio
)

packages=("${build_packages[@]}")
if [[ "${1:-}" == "--tests" ]]; then
  packages+=("${test_packages[@]}")
elif [[ "${1:-}" == "--python" ]]; then
  packages+=("${python_packages[@]}")
fi

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
    missing+=("$package")
  fi
done
if [[ ${#missing[@]} -eq 0 ]]; then
  exit 0
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "install_deps: not root and no sudo; as root run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "installing from Debian's packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update -q && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
       apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "install_deps: apt-get failed, see above" >&2
  exit 1
fi
