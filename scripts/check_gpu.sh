#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most eight minutes: tests/gpu, then the benchmarks of the loss (beside
# torch.compile and, if it is installed, Liger-Kernel), the update, the cache, the teacher, and translation by a model that
# is trained for it. Each step has its own limit, and a step that fails or runs out of time does not stop the others.
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
# the model that translates: transformer base on generated text, just long enough for its translations to end
layers=6 dim=512 ffn=2048 heads=8 updates=400 train=10000 test=1000 rounds=3 place=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run)
      measured=(--device cpu --quick) slack=5 # a CPU is slower even so
      layers=1 dim=32 ffn=32 heads=2 updates=5 train=500 test=20 rounds=1 place=(--cpu)
      ;;
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
step loss 100 "$python" scripts/bench_loss.py "${measured[@]}" --seconds 0.5 --no-memory --out "$out"
step update 75 "$python" scripts/bench_step.py "${measured[@]}" --seconds 1 --no-memory --out "$out"
step cache 35 "$python" scripts/bench_cache.py "${measured[@]}" --seconds 1 --out "$out"
step teacher 25 "$python" scripts/bench_teacher.py "${measured[@]}" --seconds 1 --no-memory --out "$out"
step text 10 "$python" scripts/quickstart_corpus.py "$out/text" --train "$train" --valid "$test" --test 10 --seed 1
step corpus 15 "$python" -m kd_plugin.pipeline.data --source-lang en --target-lang de --output "$out/corpus" \
  --train "$out/text/train" --valid "$out/text/valid" --subwords vocab_size=1000 --subwords hard_vocab_limit=false
step model 30 "$python" -m fairseq_cli.train "$out/corpus/data-bin" ${place[@]+"${place[@]}"} --save-dir "$out/model" \
  --arch transformer --share-all-embeddings --encoder-layers "$layers" --decoder-layers "$layers" --dropout 0 \
  --encoder-embed-dim "$dim" --decoder-embed-dim "$dim" --encoder-ffn-embed-dim "$ffn" --decoder-ffn-embed-dim "$ffn" \
  --encoder-attention-heads "$heads" --decoder-attention-heads "$heads" --encoder-normalize-before \
  --decoder-normalize-before --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1 --lr 1e-3 \
  --lr-scheduler inverse_sqrt --warmup-updates 100 --max-tokens 4096 --max-update "$updates" --seed 1 \
  --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --no-epoch-checkpoints --num-workers 0
step decode 40 "$python" scripts/bench_decode.py "$out/model/checkpoint_last.pt" "$out/corpus/data-bin" \
  --gen-subset valid --source "$out/text/valid.en" --reference "$out/text/valid.de" \
  --sentencepiece-model "$out/corpus/spm.model" --batch-size 256 --device "${measured[1]}" --rounds "$rounds" --out "$out"

{
  echo "# GPU check, $(date +%Y-%m-%d), ${measured[*]}"
  echo
  "$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", "· torch", torch.__version__)'
  echo
  printf '%s\n' '| step | seconds | |' '|---|--:|---|' "${rows[@]}"
} | tee "$out/summary.md"
exit "$status"
