#!/usr/bin/env bash
# The main workflow on a bare machine: set-up, a corpus, a teacher, a student without and the same student with
# distillation, an exported model, one table and a report. Needs no root and, apart from pip packages, no download.
set -euo pipefail
# Make OpenMP's threads sleep instead of busy-waiting for each other, which would slow down all work on the machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

usage() {
  cat <<'HELP'
usage: scripts/quickstart.sh [--smoke]

  --smoke   a tiny corpus and a few updates, about a minute: shows that everything runs, but the scores mean nothing
            (also KD_QUICKSTART_SMOKE=1)

  KD_QUICKSTART_DIR   folder for all output (default: quickstart/ in the checkout)
  KD_VENV, PYTHON, KD_TORCH   see scripts/setup.sh
  OMP_NUM_THREADS     training threads (default: one per core)
  OMP_WAIT_POLICY     whether threads spin (ACTIVE) or sleep (PASSIVE, the default) while they wait for each other
Finished steps are skipped; a step is repeated if its command, script or input has changed.
HELP
}

smoke=${KD_QUICKSTART_SMOKE:-}
case "${1:-}" in
  "") ;;
  --smoke) smoke=1 ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
out=${KD_QUICKSTART_DIR:-quickstart}
[ "$smoke" != 1 ] || out=$out/smoke
# The content of this folder is removed and recreated, so it must be one that this script made.
if [ -d "$out" ] && [ -n "$(find "$out" -mindepth 1 -maxdepth 1 ! -name smoke)" ] && [ ! -e "$out/.quickstart" ] && [ ! -e "$out/corpus/.done" ]; then
  echo "quickstart: $out has files that this script did not make: empty it, or set KD_QUICKSTART_DIR" >&2
  exit 1
fi
bash scripts/setup.sh
venv=${KD_VENV:-.venv}
case "$venv" in /*) ;; *) venv=$root/$venv ;; esac
export PATH="$venv/bin:$PATH"

# --- the recipe ------------------------------------------------------------------------------------------------------
# Corpus: the teacher reads about 40,000 lines once, so that nothing is memorised. As in a corpus crawled from the web, a
#   part of the training lines (and only of those) has the German of another line. Here a teacher helps: it has averaged
#   these errors out, while each wrong reference misleads a student that reads it. On the same corpus without errors, both
#   students were about equal (BLEU 76.3 without and 74.9 with distillation, seed 1, 900 updates, a teacher without label
#   smoothing): if text follows rules, clean references teach as well as a teacher does.
# Teacher: a small transformer on the same lines, errors included.
# Student: half the width and fewer layers, about a sixth of the parameters.
# Both students share lines, seed, batches, updates, optimiser and learning rate, and differ only in the criterion.
#   Equal updates do not take equal time: the teacher runs along, as the last column of the table shows.
corpus=(--train 40000 --valid 500 --test 1000 --misaligned 0.3 --seed 1)
vocab_size=1000
teacher_updates=900
student_updates=800
warmup_updates=100
label_smoothing=0.1 # the usual value, for all three
check_threshold=80  # BLEU of the exported model's translations against the student's
status_interval=20
if [ "$smoke" = 1 ]; then
  corpus=(--train 2000 --valid 50 --test 50 --misaligned 0.3 --seed 1)
  vocab_size=500
  teacher_updates=40
  student_updates=40
  warmup_updates=10
  status_interval=5
  check_threshold=0
fi

teacher_model=(
  --arch transformer --encoder-layers 3 --decoder-layers 2 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --lr 3e-3
)
student_model=(
  --arch transformer --encoder-layers 2 --decoder-layers 1 --encoder-attention-heads 2 --decoder-attention-heads 2
  --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256 --lr 5e-3
)
# Batches are small, because a short training runs out of updates before it runs out of sentences.
training=(
  --share-all-embeddings --encoder-normalize-before --decoder-normalize-before --dropout 0
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1 --lr-scheduler polynomial_decay
  --warmup-updates "$warmup_updates" --max-tokens 1024 --required-batch-size-multiple 1 --seed 1 --cpu
  --label-smoothing "$label_smoothing" --no-epoch-checkpoints --validate-interval 1000 --num-workers 0
  --log-format json --log-interval "$status_interval"
)
plain=(--task translation --criterion label_smoothed_cross_entropy)
# alpha 0 uses the teacher alone, because it has already learned from the references.
distilled=(
  --task distillation_translation --criterion kd_label_smoothed_cross_entropy --teacher-path teacher/checkpoint_last.pt
  --kd-alpha 0 --kd-temperature 1
)

# --- how a step runs -------------------------------------------------------------------------------------------------
mkdir -p "$out/logs"
touch "$out/.quickstart"
# Inside the folder all names are plain and relative, because fairseq and sentencepiece split paths at colons and commas.
cd "$out"
out=$PWD

child=
# Each step is its own process group (set -m, below), so that stopping this script also stops the step.
stop_child() { [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true; }
trap stop_child EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

hash_of_input() { python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }

# fingerprint ARGUMENTS…: the arguments, the content of those that are files, the code in those that are folders.
fingerprint() {
  local argument
  printf '%s\0' "$@"
  for argument in "$@"; do
    if [ -f "$argument" ]; then cat "$argument"; fi
    if [ -d "$argument" ]; then find "$argument" -name '*.py' -print0 | sort -z | xargs -0 -r cat; fi
  done
}

chain= # the fingerprint of all steps so far: a step is repeated if anything before it has changed
number=0
steps=9
python -c "import ctranslate2" 2>/dev/null || steps=8

# step NAME WHAT COMMAND…: COMMAND fills the folder NAME.new, which becomes NAME only when it is complete.
step() {
  local name=$1 what=$2 log=logs/$1.log started=$SECONDS
  shift 2
  number=$((number + 1))
  chain=$({ echo "$chain"; fingerprint "$@"; } | hash_of_input)
  if [ -f "$name/.done" ] && [ "$(cat "$name/.done")" = "$chain" ]; then
    printf '%d/%d %s: done before\n' "$number" "$steps" "$what"
    return
  fi
  printf '%d/%d %s (log: %s)\n' "$number" "$steps" "$what" "$out/$log"
  rm -rf "$name.new"
  mkdir "$name.new"
  set -m
  (
    TIMEFORMAT='%U %S'
    time "$@" >"$log" 2>&1 </dev/null
  ) 2>"$name.new/cpu-seconds" &
  child=$!
  set +m
  show_progress "$log" "$started"
  if ! wait "$child"; then
    child=
    printf 'quickstart: "%s" failed. The end of %s:\n' "$what" "$out/$log" >&2
    tail -n 25 "$log" >&2
    exit 1
  fi
  child=
  echo "$chain" >"$name.new/.done"
  rm -rf "$name"
  mv "$name.new" "$name"
  printf '    %d s\n' "$((SECONDS - started))"
}

# While the step runs: one line that is updated on a terminal, or a line every half minute elsewhere.
show_progress() {
  local log=$1 started=$2 updates elapsed ticks=0
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    ticks=$((ticks + 1))
    elapsed=$((SECONDS - started))
    updates=$(grep -oE '"num_updates": "[0-9]+"' "$log" 2>/dev/null | tail -n 1 | tr -dc 0-9) || true
    if [ -t 1 ]; then
      printf '\r    %d s%s ' "$elapsed" "${updates:+, update $updates}"
    elif [ "$((ticks % 150))" -eq 0 ]; then
      printf '    %d s%s\n' "$elapsed" "${updates:+, update $updates}"
    fi
  done
  if [ -t 1 ]; then printf '\r'; fi
}

# --- the steps -------------------------------------------------------------------------------------------------------
train() {
  local name=$1 what=$2 updates=$3
  shift 3
  step "$name" "$what, $updates updates" fairseq-train data --source-lang en --target-lang de --save-dir "$name.new" \
    "${training[@]}" --max-update "$updates" --total-num-update "$updates" "$@"
}

step corpus "corpus" python "$root/scripts/quickstart_corpus.py" corpus.new "${corpus[@]}"
step subwords "sentencepiece model" \
  python "$root/scripts/quickstart_subwords.py" corpus subwords.new --vocab-size "$vocab_size"
step data "fairseq-preprocess" fairseq-preprocess --source-lang en --target-lang de --joined-dictionary \
  --trainpref subwords/train --validpref subwords/valid --testpref subwords/test --destdir data.new
train teacher "teacher" "$teacher_updates" "${teacher_model[@]}" "${plain[@]}"
train student "student without distillation" "$student_updates" "${student_model[@]}" "${plain[@]}"
train distilled "student with distillation" "$student_updates" "${student_model[@]}" \
  --user-dir "$root/kd_plugin" "${distilled[@]}"
models=(--model teacher=teacher/checkpoint_last.pt --model student=student/checkpoint_last.pt)
models+=(--model distilled=distilled/checkpoint_last.pt)
if python -c "import ctranslate2" 2>/dev/null; then
  step exported "export of the distilled student: CTranslate2, int8" kd-plugin export distilled/checkpoint_last.pt \
    --format ctranslate2 --quantization int8 --sentencepiece-model subwords/subwords.model --dict-dir data \
    --source-lang en --target-lang de --check corpus/valid.en --check-threshold "$check_threshold" --output exported.new/model
  models+=(--model exported=exported/model)
else
  echo "(CTranslate2 is not installed: skipping the export)"
fi
step evaluation "scores, significance and speed" kd-plugin evaluate "${models[@]}" --baseline student \
  --test test=corpus/test.en,corpus/test.de --sentencepiece-model subwords/subwords.model --dict-dir data --beam 4 \
  --source-lang en --target-lang de --output evaluation.new/it
step report "report" kd-plugin report --evaluation evaluation/it --log teacher=logs/teacher.log \
  --log student=logs/student.log --log distilled=logs/distilled.log --title "Quickstart" --output report.new/report.html

echo
python "$root/scripts/quickstart_table.py" evaluation/it/evaluation.json \
  teacher="teacher" student="student" distilled="student, distilled" exported="the same, exported" | tee table.txt.new
mv table.txt.new table.txt
echo
echo "$out/report/report.html shows the results as charts, with learning curves"
