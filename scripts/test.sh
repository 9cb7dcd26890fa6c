#!/usr/bin/env bash
# Set-up and all checks: lint, types, shell syntax, then the tests. Fast to repeat, needs no root.
set -uo pipefail

usage() {
  cat <<'HELP'
usage: scripts/test.sh [--unit | --fast] [--no-lint] [PYTEST ARGUMENTS…]

  --unit      run only the tests in tests/unit
  --fast      run only the tests in tests/unit and tests/faults, without those marked slow
  --no-lint   run only tests: no ruff, mypy or shell syntax check
Other arguments go to pytest. If they include a path (scripts/test.sh tests/unit -k kl), only that path is tested.

KD_TEST_WORKERS sets the number of parallel test processes (default: one per core, at most 4; 0: no parallel tests).
KD_VENV sets the virtual environment (default .venv), PYTHON the interpreter to create it with.
HELP
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

lint=yes
paths_given=no
# In one pytest run, which imports everything once per worker and creates shared fixtures once. Long tests come first,
# because in the end one worker waits for the last test of another.
folders=(integration faults gpu unit)
pytest_args=()
for argument in "$@"; do
  case "$argument" in
    -h | --help) usage; exit 0 ;;
    --unit) folders=(unit) ;;
    --fast) folders=(faults unit); pytest_args+=(-m "not slow") ;;
    --no-lint) lint=no ;;
    tests | tests/*) paths_given=yes; pytest_args+=("$argument") ;;
    *) pytest_args+=("$argument") ;;
  esac
done

export KD_VENV="${KD_VENV:-.venv}"
bash scripts/setup.sh || { echo "scripts/test.sh: the set-up failed" >&2; exit 1; }
python="$KD_VENV/bin/python"
unset PYTHON # only needed to create the environment; the recipes' scripts, which the tests run, would read it too

# The tests start a thousand processes, each of which would compile the package anew.
unset PYTHONDONTWRITEBYTECODE

# The tests run several training processes at a time, which with more than one OpenMP thread each slow each other down.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

status=0
passed=0 failed=0 skipped=0
report=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# check NAME COMMAND…: runs it, records time and verdict, and continues in any case, so that one run shows all failures.
check() {
  local name=$1 start=$SECONDS exit_status verdict=ok
  shift
  printf '\n== %s\n' "$name"
  "$@" 2>&1 | tee "$log"
  exit_status=${PIPESTATUS[0]}
  if [ "$exit_status" -ne 0 ]; then
    status=1
    verdict="FAILED (exit $exit_status)"
  fi
  report+=("$(printf '%-26s %5ss  %s' "$name" "$((SECONDS - start))" "$verdict")")
}

# check_tests NAME PYTEST ARGUMENTS…: the same for a pytest run; adds up its counts.
check_tests() {
  check "$1" run_pytest "${@:2}"
  local line
  line=$(grep -E '^=+ .* in [0-9.]+s' "$log" | tail -n 1)
  report+=("$line")
  passed=$((passed + $(count passed "$line")))
  failed=$((failed + $(count failed "$line") + $(count error "$line")))
  skipped=$((skipped + $(count skipped "$line")))
}

run_pytest() {
  # starting fairseq's commands takes most of the time, so run in parallel, but no more than memory allows
  "$python" -m pytest -n "${KD_TEST_WORKERS:-auto}" --maxprocesses 4 --dist worksteal "$@"
  local exit_status=$?
  # 5: nothing collected, at which the end of the script fails
  [ "$exit_status" -eq 5 ] || return "$exit_status"
}

# count WORD LINE: the number before WORD in pytest's last line, or 0.
count() {
  local number
  number=$(grep -oE "[0-9]+ $1" <<<"$2" | grep -oE '[0-9]+' | head -n 1)
  echo "${number:-0}"
}

shell_syntax() {
  local script exit_status=0
  for script in .ci/run scripts/*.sh examples/*/*.sh; do
    bash -n "$script" || exit_status=1
  done
  return "$exit_status"
}

# Compile the kernels once, or each parallel test would. It takes a minute of one core, beside the linters.
compile_log=$(mktemp)
trap 'rm -f "$log" "$compile_log"' EXIT
compilations=()
for dtype in float32 float64; do
  "$python" -m tests.compile_kernels "$dtype" >>"$compile_log" 2>&1 &
  compilations+=($!)
done

compiled() {
  cat "$compile_log"
  return "$compile_status"
}

if [ "$lint" = yes ]; then
  check "ruff check" "$python" -m ruff check .
  check "ruff format" "$python" -m ruff format --check .
  check "mypy" "$python" -m mypy
  check "shell syntax" shell_syntax
fi

compile_status=0
for compilation in "${compilations[@]}"; do
  wait "$compilation" || compile_status=$? # here, because a pipe's processes cannot wait for it
done
check "compile CPU kernels" compiled

[ "$paths_given" = yes ] || pytest_args+=("${folders[@]/#/tests/}")
check_tests "pytest" "${pytest_args[@]}"

if [ "$((passed + failed))" -eq 0 ]; then
  echo "scripts/test.sh: no test ran" >&2
  status=1
fi
printf '\n== summary (%s, OMP_NUM_THREADS=%s)\n' "$("$python" --version)" "$OMP_NUM_THREADS"
printf '%s\n' ${report[@]+"${report[@]}"}
printf '\n%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
exit "$status"
