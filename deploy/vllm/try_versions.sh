#!/usr/bin/env bash
# Tries the connector with releases of vLLM: an environment for each, and the tests of tests/vllm in it.
#
#   deploy/vllm/try_versions.sh VERSION ...      such as 0.32.0
#
# Needs kavernd and kavern of `tests/run.sh dev`. Every release is a download of about 4 GB into build/vllm-VERSION.
# Prints a row for each, for the table of the README; a release that passed belongs into TRIED_VERSIONS of
# client/python/kavern/vllm/settings.py. Exits non-zero when one did not pass.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ $# -eq 0 ]]; then
  sed -nE '2,9s/^# ?//p' "$0" >&2
  exit 2
fi

model=$PWD/build/models/smollm2-135m-instruct
rows=()
code=0
for version in "$@"; do
  directory=build/vllm-$version
  # The environment of tests/run.sh serves for the release that it has.
  [[ -e build/vllm/.kavern-vllm-$version ]] && directory=build/vllm
  result="no environment"
  if VLLM_VERSION=$version deploy/vllm/install.sh "$directory" \
    && "$directory/bin/python" deploy/vllm/prepare_chat_model.py "$model"; then
    KAVERN_UNTRIED_VLLM=1 KAVERN_CHAT_MODEL=$model KAVERN_BIN=$PWD/build/dev/bin \
      "$directory/bin/python" -m pytest -q -rs -p no:cacheprovider tests/vllm | tee "$directory/tests.log" || code=1
    result=$(tail -n 1 "$directory/tests.log")
  else
    code=1
  fi
  rows+=("| $version | $result |")
done
printf '\n| vLLM | tests/vllm |\n|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$code"
