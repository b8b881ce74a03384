#!/usr/bin/env bash
# Builds and runs every test, on a fresh machine too. Ends with one line: N passed, N failed, N skipped.
#
#   tests/run.sh                 everything: what CI runs
#   tests/run.sh --quick         everything but vllm, whose environment is a download of 4 GB
#   tests/run.sh STAGE ...       some of: lint dev asan tsan tidy install python vllm
#
# Environment: KAVERN_JOBS (default: processors) bounds parallel compilation and tests.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
jobs=${KAVERN_JOBS:-$(nproc)}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

passed=0
failed=0
skipped=0
failures=()

say() { printf '\n== %s\n' "$*"; }

# check NAME COMMAND...: a check without cases of its own; counts as one test.
check() {
  local name=$1 started=$SECONDS
  shift
  if "$@" >"$results/check.log" 2>&1; then
    passed=$((passed + 1))
    printf 'ok    %s (%d s)\n' "$name" $((SECONDS - started))
  else
    failed=$((failed + 1))
    failures+=("$name")
    printf 'FAIL  %s (%d s)\n' "$name" $((SECONDS - started))
    tail -n 60 "$results/check.log"
  fi
}

build() {  # build PRESET [TARGET ...]
  local preset=$1
  shift
  cmake --preset "$preset" >"$results/configure.log" 2>&1 \
    || { cat "$results/configure.log"; return 1; }
  cmake --build "build/$preset" --parallel "$jobs" ${1:+--target "$@"}
}

# run_ctest PRESET: runs what the preset built, and adds its cases to the totals.
run_ctest() {
  local preset=$1 report="$results/$1.xml"
  shift
  ctest --test-dir "build/$preset" --parallel "$jobs" --output-on-failure --output-junit "$report" \
    "$@" >"$results/ctest.log" 2>&1
  # What failed and what was skipped is shown; what passed is counted.
  grep -vE '^ *(Start +[0-9]+:|[0-9]+/[0-9]+ Test +#[0-9]+: .* Passed )' "$results/ctest.log" | tail -n 200
  count_report "$report" "$preset"
}

# count_report JUNIT_XML NAME: adds its cases to the totals.
count_report() {
  local counts fields
  counts=$(python3 - "$1" "$2" <<'PY'
import sys, xml.etree.ElementTree as tree
cases = list(tree.parse(sys.argv[1]).getroot().iter("testcase"))
has = lambda case, *tags: any(case.find(tag) is not None for tag in tags)
failed = [c.get("name") for c in cases if c.get("status") == "fail" or has(c, "failure", "error")]
skipped = [c.get("name") for c in cases if c.get("status") in ("notrun", "disabled") or has(c, "skipped")]
names = [f"{sys.argv[2]}:{n}".replace(" ", "_") for n in failed]
print(len(cases) - len(failed) - len(skipped), len(failed), len(skipped), *names)
PY
  ) || counts="0 1 0 $2:no-report"
  read -r -a fields <<<"$counts"
  passed=$((passed + fields[0]))
  failed=$((failed + fields[1]))
  skipped=$((skipped + fields[2]))
  failures+=("${fields[@]:3}")
  # A stage that runs nothing would pass for ever.
  if [[ ${fields[0]} -eq 0 ]]; then
    failed=$((failed + 1))
    failures+=("$2: no test ran")
  fi
}

# run_pytest NAME PYTHON DIRECTORY: adds its cases to the totals, and shows what they print.
run_pytest() {
  local report="$results/$1.xml"
  KAVERN_BIN="$root/build/dev/bin" "$2" -m pytest -q -s -rs -p no:cacheprovider --junit-xml "$report" "$3" \
    >"$results/pytest.log" 2>&1
  tail -n 100 "$results/pytest.log"
  count_report "$report" "$1"
}

stage_lint() {
  say "lint"
  check "include arrows: the check catches planted violations" python3 tests/lint/include_arrows.py --self-test
  check "include arrows" python3 tests/lint/include_arrows.py "$root"
  # shellcheck disable=SC2046
  check "clang-format" clang-format --dry-run --Werror $(git ls-files '*.cc' '*.h')
}

stage_dev() {
  say "dev: g++, warnings are errors"
  check "build dev" build dev
  run_ctest dev
}

stage_asan() {
  say "asan: clang's thread-safety analysis, AddressSanitizer and UndefinedBehaviorSanitizer"
  check "build asan" build asan
  # Every prefix is cut in dev; here, where a recovery takes seven times as long, every fourth.
  KAVERN_POWER_CUT_STRIDE=4 ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 run_ctest asan
}

stage_tsan() {
  say "tsan: ThreadSanitizer over everything but gRPC"
  check "build tsan" build tsan tests_without_grpc
  TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 run_ctest tsan -L unit
}

stage_tidy() {
  say "tidy: clang-tidy"
  check "generated sources" build dev kavern_grpc
  check "clang-tidy" tests/lint/clang_tidy.sh build/dev "$jobs"
}

stage_python() {
  say "python: the package as pip installs it, against the daemon of dev"
  local environment=$root/build/python/environment
  check "environment" python3 -m venv "$environment"
  # With build isolation, as on a user's machine.
  check "pip install ./client/python" "$environment/bin/pip" install --quiet "./client/python[test]"
  run_pytest python "$environment/bin/python" client/python/tests
}

stage_vllm() {
  say "vllm: the connector in a real engine, with a real chat model"
  local environment=$root/build/vllm model=$root/build/models/smollm2-135m-instruct
  check "daemon and command line" build dev kavernd kavern
  check "vLLM and the package in its environment" deploy/vllm/install.sh "$environment"
  check "chat model" "$environment/bin/python" deploy/vllm/prepare_chat_model.py "$model"
  KAVERN_CHAT_MODEL=$model run_pytest vllm "$environment/bin/python" tests/vllm
}

stage_install() {
  say "install: a program outside the tree builds against the installed library"
  check "installed client library" tests/integration/installed_client.sh
}

stages=("$@")
left_out=
if [[ ${#stages[@]} -eq 0 ]]; then
  stages=(lint dev asan tsan tidy install python vllm)
elif [[ "${stages[*]}" == --quick ]]; then
  stages=(lint dev asan tsan tidy install python)
  left_out=vllm
fi

deploy/install_deps.sh --tests || { echo "0 passed, 1 failed"; exit 1; }
times=()
for stage in "${stages[@]}"; do
  started=$SECONDS
  case "$stage" in
    lint | dev | asan | tsan | tidy | install | python | vllm) "stage_$stage" ;;
    *)
      echo "tests/run.sh: unknown stage $stage; known: lint dev asan tsan tidy install python vllm, --quick" >&2
      exit 2
      ;;
  esac
  times+=("$stage $(((SECONDS - started) / 60)):$(printf %02d $(((SECONDS - started) % 60)))")
done

[[ -z $left_out ]] || say "left out by --quick: the stage $left_out"
say "all stages, $((SECONDS / 60)) min $((SECONDS % 60)) s:$(printf ' %s,' "${times[@]}" | sed 's/,$//')"
for name in "${failures[@]}"; do
  printf 'failed: %s\n' "$name"
done
echo "$passed passed, $failed failed, $skipped skipped"
[[ $failed -eq 0 ]]
