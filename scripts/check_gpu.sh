#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most eight minutes: tests/gpu, then the benchmarks of the loss (beside
# torch.compile and, if it is installed, Liger-Kernel), the update, the cache and the teacher. Each step has its own limit,
# and a step that fails or runs out of time does not stop the others.
set -uo pipefail

usage() {
  cat <<'HELP'
usage: scripts/check_gpu.sh [--dry-run] [--out DIR]

  --dry-run   on the CPU, with tiny sizes: shows that everything starts; the numbers mean nothing
  --out DIR   for tables, logs and summary.md (default: gpu-check)
PYTHON sets the interpreter (default: .venv's, else python). Exit status: 0 if every step succeeded.
HELP
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out=gpu-check
measured=(--device cuda)
slack=1
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) measured=(--device cpu --quick) slack=5 ;; # a CPU is slower even so
    --out) [ $# -ge 2 ] || { usage >&2; exit 2; }; out=$2; shift ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python; }
if [ "${measured[1]}" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "check_gpu.sh: torch sees no CUDA device. Remedy: a CUDA build of torch on a machine with a GPU, or --dry-run" >&2
  exit 1
fi
if [ -e "$out/summary.md" ]; then
  echo "check_gpu.sh: $out already holds a check. Remedy: another --out, or remove it" >&2
  exit 1
fi
mkdir -p "$out" || exit 1

status=0
rows=()
# step NAME SECONDS COMMAND…: its output goes to $out/NAME.log
step() {
  local name=$1 limit=$(($2 * slack)) start=$SECONDS verdict=ok code
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  case "$code" in
    0) ;;
    124 | 137) verdict="ran out of its $limit s" status=1 ;;
    *) verdict="failed (exit $code)" status=1 ;;
  esac
  tail -n 3 "$out/$name.log"
  rows+=("| $name | $((SECONDS - start)) | $verdict |")
}

step tests 150 "$python" -m pytest -q tests/gpu
step loss 120 "$python" scripts/bench_loss.py "${measured[@]}" --seconds 0.5 --no-memory --out "$out"
step update 100 "$python" scripts/bench_step.py "${measured[@]}" --seconds 1 --no-memory --out "$out"
step cache 60 "$python" scripts/bench_cache.py "${measured[@]}" --seconds 1 --out "$out"
step teacher 40 "$python" scripts/bench_teacher.py "${measured[@]}" --seconds 1 --no-memory --out "$out"

{
  echo "# GPU check, $(date +%Y-%m-%d), ${measured[*]}"
  echo
  "$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", "· torch", torch.__version__)'
  echo
  printf '%s\n' '| step | seconds | |' '|---|--:|---|' "${rows[@]}"
} | tee "$out/summary.md"
exit "$status"
