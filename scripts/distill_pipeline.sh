#!/usr/bin/env bash
# The whole pipeline to a small deployable model: teacher → decode → select → filter → mix → cache → student → export
# → evaluate → report. Needs an environment with the plugin, fairseq, and CTranslate2 (pip install '.[fairseq,export,report]').
set -euo pipefail
# Make OpenMP's threads sleep instead of busy-waiting for each other, which would slow down all work on the machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

usage() {
  cat <<'HELP'
usage: scripts/distill_pipeline.sh PREPARED OUT [TEACHER.pt]

  PREPARED   folder made by examples/translation/prepare-*.sh: one sentencepiece model and dictionary for both languages
  OUT        folder for all output, including OUT/report.html and OUT/evaluation/evaluation.md
  TEACHER    checkpoint with its dictionary beside it; without it, a teacher is trained first (train-teacher.sh)

Finished steps are skipped, and a killed step is resumed; a step is repeated if its command or anything before it has
changed.

  ENGINE=ctranslate2   or fairseq: the decoder            MONO=FILE    further source text to translate, one sentence per line
  NBEST=5 BEAM=5       translations per sentence          SELECT=reference   or score, mbr: which translation to keep
  PARTS=both           pseudo: without the original pairs UPSAMPLE=1   how often an epoch reads the original pairs
  FILTER=              further flags of kd-plugin filter
  INIT=                teacher: the student starts from the teacher's weights (kd-plugin init), in the sizes below; or flags
                       that name the layers: "--encoder-layers 0,2 --decoder-layers 1,"
  ROUNDS=0             after the student: it translates the training text, the teacher's answers about its words are cached,
                       and it trains on from them alone, ROUND_UPDATES (a fifth of MAX_UPDATE) a round
  CACHE=16             the teacher's best entries per token to cache; 0: run the teacher online
  BASELINE=1           also train the same student without distillation, for the same number of updates
  MAX_UPDATE=5000      of both; ALPHA, LR, WARMUP, DIM, SEED, …: as in examples/translation/distill.sh
  AVERAGE=4            number of checkpoints to average, a twentieth of MAX_UPDATE apart (SAVE_INTERVAL_UPDATES)
  TEACHER_FLAGS=       fairseq-train flags for a teacher that is trained here; TEACHER_AVERAGE=8 of its epochs are averaged
  CHECK_THRESHOLD=     BLEU that an exported model must reach against its checkpoint; default: kd-plugin export's
  WORKERS, PYTHON      number of processes, and the interpreter
HELP
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
case $# in 2 | 3) ;; *) usage >&2; exit 2 ;; esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
recipes=$root/examples/translation
[ -f "$1/prepared.txt" ] || { echo "${0##*/}: $1 was not made by prepare-*.sh" >&2; exit 1; }
prepared=$(cd "$1" && pwd)
mkdir -p "$2/logs" "$2/done"
out=$(cd "$2" && pwd)
teacher=${3:-}
[ -z "$teacher" ] || teacher=$(cd "$(dirname "$teacher")" && pwd)/${teacher##*/}
[ -z "${MONO:-}" ] || MONO=$(cd "$(dirname "$MONO")" && pwd)/${MONO##*/}
cd "$out" # from here on, names are plain and relative
if command -v flock >/dev/null; then # not on every system
  exec 9>done/.lock
  flock -n 9 || { echo "${0##*/}: another run is working in $out: wait for it, or name another OUT" >&2; exit 1; }
fi

ENGINE=${ENGINE:-ctranslate2} NBEST=${NBEST:-5} BEAM=${BEAM:-5} SELECT=${SELECT:-reference} PARTS=${PARTS:-both}
UPSAMPLE=${UPSAMPLE:-1} CACHE=${CACHE:-16} BASELINE=${BASELINE:-1} MAX_UPDATE=${MAX_UPDATE:-5000} ROUNDS=${ROUNDS:-0}
TEACHER_AVERAGE=${TEACHER_AVERAGE:-8}
# A student's training ends after a number of updates, and the averaged checkpoints are counted in updates, because epochs
# of different data have different lengths.
export AVERAGE=${AVERAGE:-4} SAVE_INTERVAL_UPDATES=${SAVE_INTERVAL_UPDATES:-$(((MAX_UPDATE + 19) / 20))}
unset MAX_EPOCH KD TEACHER_WEIGHTS USER_DIR # settings of the recipes that do not apply here
endless=100000
PYTHON=${PYTHON:-$(command -v python || command -v python3)}
export PYTHON
pair=$(sed -n 's/^pair //p' "$prepared/prepared.txt")
src=${pair%-*} tgt=${pair#*-}
spm=$prepared/spm.model
# the settings that distill.sh reads from the environment
settings=$(env | grep -E '^(ALPHA|TEMPERATURE|(EN|DE)CODER_LAYERS|DIM|FFN|HEADS|DROPOUT|LABEL_SMOOTHING|LR|WARMUP|MAX_TOKENS|UPDATE_FREQ|AVERAGE|SAVE_INTERVAL_UPDATES|SEED)=' | sort) || true

chain=$(cat "$prepared/prepared.txt") # fingerprint of everything so far: any earlier change repeats a step
# step NAME WHAT COMMAND…: runs a command once; its output goes to a log, and to the terminal if it fails.
step() {
  local name=$1 what=$2 started=$SECONDS
  shift 2
  local word previous='' counted=()
  for word in "$@"; do # the number of processes does not change the result
    [ "$word" = --workers ] || [ "$previous" = --workers ] || counted+=("$word")
    previous=$word
  done
  chain=$(printf '%s\0' "$chain" "${counted[@]}" | sha256sum | cut -d' ' -f1)
  if [ "$(cat "done/$name" 2>/dev/null)" = "done $chain" ]; then
    echo "$what: done before"
    return
  fi
  if [ ! -e "done/$name" ] && { [ -e "$name" ] || [ -e "logs/$name.log" ]; }; then
    echo "${0##*/}: $out has a $name (or logs/$name.log) that this script did not make: name another OUT" >&2
    exit 1
  fi
  # remove leftovers of another command; those of this one are resumed
  if [ "$(cat "done/$name" 2>/dev/null)" != "begun $chain" ]; then
    rm -rf "$name" "logs/$name.log"
    echo "begun $chain" >"done/$name"
  fi
  echo "$what (log: $out/logs/$name.log)"
  if ! "$@" >>"logs/$name.log" 2>&1; then # append, because the report reads both parts of a resumed training's curve
    echo "${0##*/}: \"$what\" failed. The end of logs/$name.log:" >&2
    tail -n 20 "logs/$name.log" >&2
    exit 1
  fi
  echo "done $chain" >"done/$name.new"
  mv "done/$name.new" "done/$name"
  echo "    $((SECONDS - started)) s"
}

if [ -z "$teacher" ]; then
  read -r -a flags <<<"${TEACHER_FLAGS:-}"
  # sizes and rates in the environment are for the student
  step teacher "teacher" env -u ENCODER_LAYERS -u DECODER_LAYERS -u DIM -u FFN -u HEADS -u DROPOUT -u LABEL_SMOOTHING -u LR \
    -u WARMUP -u MAX_TOKENS -u UPDATE_FREQ SEED="${SEED:-1}" AVERAGE="$TEACHER_AVERAGE" bash "$recipes/train-teacher.sh" "$prepared/data-bin" teacher \
    ${flags[@]+"${flags[@]}"}
  teacher=$out/teacher/averaged.pt
  cp "$prepared/dict.txt" teacher/dict.txt
fi
chain=$chain$(sha256sum <"$teacher")

decoding=(
  kd-plugin decode --path "$teacher" -s "$src" -t "$tgt" --sentencepiece-model "$spm" --engine "$ENGINE"
  --beam "$BEAM" --nbest "$NBEST" --workers "${WORKERS:-1}"
)
read -r -a filter <<<"--max-length 250 ${FILTER:-}"
reference=()
[ "$SELECT" != reference ] || reference=(--reference "$prepared/raw/train.$tgt")
step decoded "translating the training set, $NBEST best" "${decoding[@]}" --input "$prepared/raw/train.$src" \
  --output decoded
step selected "one of $NBEST, by $SELECT" kd-plugin select decoded --by "$SELECT" --output selected \
  ${reference[@]+"${reference[@]}"}
step filtered "filter" kd-plugin filter selected --output filtered --text filtered/pseudo "${filter[@]}"
parts=(filtered/pseudo)
[ "$PARTS" = pseudo ] || parts=(original "${parts[@]}")
if [ -n "${MONO:-}" ]; then
  chain=$chain$(sha256sum <"$MONO")
  [ "$SELECT" != reference ] || mono_select=score # this text has no references
  step mono-decoded "translating $MONO" "${decoding[@]}" --input "$MONO" --output mono-decoded
  step mono-selected "one of $NBEST of each" kd-plugin select mono-decoded --by "${mono_select:-$SELECT}" \
    --output mono-selected
  step mono-filtered "filter" kd-plugin filter mono-selected --output mono-filtered --text mono-filtered/pseudo \
    "${filter[@]}"
  parts+=(mono-filtered/pseudo)
fi
step mixed "training data: ${parts[*]}" bash "$recipes/mix-data.sh" "$prepared" mixed "${parts[@]}"

teaches=$teacher
if [ "$CACHE" != 0 ]; then
  subsets=train
  for ((part = 1; part < ${#parts[@]}; part++)); do subsets=$subsets,train$part; done
  step cache "the teacher's answers, $CACHE per token" kd-plugin cache mixed/data-bin --subset "$subsets,valid" \
    --teacher-path "$teacher" --cache-dir cache --k "$CACHE" --workers "${WORKERS:-1}"
  teaches=cache
fi
chain=$chain$settings
start=() shape=()
if [ -n "${INIT:-}" ]; then
  layers=(--encoder-layers "${ENCODER_LAYERS:-2}" --decoder-layers "${DECODER_LAYERS:-2}")
  [ "$INIT" = teacher ] || read -r -a layers <<<"$INIT"
  case $(cat done/init 2>/dev/null) in begun*) rm -rf init ;; esac # kd-plugin init overwrites nothing, and takes seconds
  step init "the student's first weights, from the teacher's" kd-plugin init "$teacher" --output init/student.pt \
    --data mixed/data-bin --source-lang "$src" --target-lang "$tgt" --sentencepiece-model "$spm" \
    --embed-dim "${DIM:-64}" --ffn-dim "${FFN:-128}" --heads "${HEADS:-4}" "${layers[@]}"
  read -r -a shape <<<"$("$PYTHON" -c 'import json; print(*json.load(open("init/student.init.json"))["fairseq_train"])')"
  case " ${shape[*]} " in
    *' --share-all-embeddings '*) ;;
    *) echo "${0##*/}: INIT: the students here share all embeddings, but $teacher does not" >&2; exit 1 ;;
  esac
  start=(--finetune-from-model init/student.pt)
fi
step student "student, distilled" bash "$recipes/distill.sh" mixed/data-bin "$teaches" student \
  --upsample-primary "$UPSAMPLE" --max-update "$MAX_UPDATE" --max-epoch "$endless" \
  ${shape[@]+"${shape[@]}"} ${start[@]+"${start[@]}"}
models=(--model "teacher=$teacher" --model student=student/averaged.pt)
logs=(--log "student=logs/student.log")
best=student
for ((round = 1; round <= ROUNDS; round++)); do
  own=rollouts$round learned=cache$round
  step "$own" "round $round: the student translates" kd-plugin decode --path "$best/averaged.pt" -s "$src" -t "$tgt" \
    --dict-dir "$prepared" --sentencepiece-model "$spm" --engine "$ENGINE" --beam 1 --nbest 1 --workers "${WORKERS:-1}" \
    --input "$prepared/raw/train.$src" --output "$own" --text "$own/own"
  step "own$round" "round $round: its words as training data" bash "$recipes/mix-data.sh" "$prepared" "own$round" "$own/own"
  step "$learned" "round $round: the teacher's answers about them" kd-plugin cache "own$round/data-bin" --subset train,valid \
    --teacher-path "$teacher" --cache-dir "$learned" --k "$((CACHE > 0 ? CACHE : 16))" --workers "${WORKERS:-1}"
  step "round$round" "round $round: the student learns from them" env ALPHA=0 bash "$recipes/distill.sh" "own$round/data-bin" \
    "$learned" "round$round" --finetune-from-model "$best/averaged.pt" --max-epoch "$endless" \
    --max-update "${ROUND_UPDATES:-$(((MAX_UPDATE + 4) / 5))}" ${shape[@]+"${shape[@]}"}
  best=round$round
  models+=(--model "$best=$best/averaged.pt")
  logs+=(--log "$best=logs/$best.log")
done
baseline=teacher
if [ "$BASELINE" != 0 ]; then
  step baseline "the same student, undistilled" env KD=0 bash "$recipes/distill.sh" "$prepared/data-bin" none baseline \
    --max-update "$MAX_UPDATE" --max-epoch "$endless" ${shape[@]+"${shape[@]}"}
  models+=(--model baseline=baseline/averaged.pt)
  logs+=(--log "baseline=logs/baseline.log")
  baseline=baseline
fi
threshold=()
[ -z "${CHECK_THRESHOLD:-}" ] || threshold=(--check-threshold "$CHECK_THRESHOLD")
for quantization in float32 int8; do
  step "student-$quantization" "export: CTranslate2, $quantization" kd-plugin export "$best/averaged.pt" --format ctranslate2 \
    --quantization "$quantization" --sentencepiece-model "$spm" --dict-dir "$prepared" --source-lang "$src" --target-lang "$tgt" \
    --output "student-$quantization" \
    --check "$prepared/raw/valid.$src" ${threshold[@]+"${threshold[@]}"}
  models+=(--model "student-$quantization=student-$quantization")
done
tests=()
while read -r name title; do
  tests+=(--test "$title=$prepared/raw/$name.$src,$prepared/raw/$name.$tgt")
done <"$prepared/testsets.txt"
step evaluation "scores, significance, speed" kd-plugin evaluate "${models[@]}" "${tests[@]}" --baseline "$baseline" \
  --sentencepiece-model "$spm" --beam "$BEAM" --source-lang "$src" --target-lang "$tgt" --dict-dir "$prepared" --output evaluation
step report.html "report" kd-plugin report --output report.html --evaluation evaluation "${logs[@]}" --title "$pair"
echo
cat evaluation/evaluation.md
echo "$out/report.html shows the results as charts; student-int8 is the model to use"
