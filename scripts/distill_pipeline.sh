#!/usr/bin/env bash
# The whole pipeline to a small deployable model: teacher → decode → select → filter → mix → cache → student → export
# → evaluate → report, by `kd-plugin distill`: this script writes its file from the variables below. Needs an environment
# with the plugin, fairseq, CTranslate2 and Snakemake (pip install '.[fairseq,export,report,pipeline]').
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
                       and it trains on from them alone, ROUND_UPDATES (a fifth of MAX_UPDATE, or what AVERAGE needs) a round
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
[ -f "$1/prepared.txt" ] || { echo "${0##*/}: $1 was not made by prepare-*.sh" >&2; exit 1; }

MAX_UPDATE=${MAX_UPDATE:-5000} INIT=${INIT:-} ENCODER_LAYERS=${ENCODER_LAYERS:-2} DECODER_LAYERS=${DECODER_LAYERS:-2}
DIM=${DIM:-64} FFN=${FFN:-128} HEADS=${HEADS:-4} CACHE=${CACHE:-16}

quoted() { printf "'%s'" "${1//\'/\'\'}"; }   # a YAML text

# flags ENCODER_LAYERS DECODER_LAYERS DIM FFN HEADS DROPOUT LABEL_SMOOTHING LR WARMUP MAX_TOKENS UPDATE_FREQ: of fairseq-train,
# as in train-teacher.sh and distill.sh
flags() {
  echo "--arch transformer --encoder-layers $1 --decoder-layers $2 --encoder-embed-dim $3 --decoder-embed-dim $3" \
    "--encoder-ffn-embed-dim $4 --decoder-ffn-embed-dim $4 --encoder-attention-heads $5 --decoder-attention-heads $5" \
    "--dropout $6 --label-smoothing $7 --optimizer adam --adam-betas '(0.9, 0.98)' --lr $8 --lr-scheduler inverse_sqrt" \
    "--warmup-updates $9 --max-tokens ${10} --update-freq ${11} --required-batch-size-multiple 1" \
    "--best-checkpoint-metric nll_loss"
}

student=$(flags "$ENCODER_LAYERS" "$DECODER_LAYERS" "$DIM" "$FFN" "$HEADS" "${DROPOUT:-0.1}" "${LABEL_SMOOTHING:-0.1}" \
  "${LR:-0.005}" "${WARMUP:-2000}" "${MAX_TOKENS:-4096}" "${UPDATE_FREQ:-1}")
# A student's training ends after a number of updates, because epochs of different data have different lengths.
student="$student --max-update $MAX_UPDATE"
[ -n "$INIT" ] || student="$student --share-all-embeddings" # else as the teacher, like all of the shape
average=${AVERAGE:-4} every=${SAVE_INTERVAL_UPDATES:-$(((MAX_UPDATE + 19) / 20))}
students="average: $average, every: $every, seeds: [${SEED:-1}]"
round=$(((MAX_UPDATE + 4) / 5))
[ $((average * every)) -le $round ] || round=$((average * every)) # or it would have too few checkpoints to average

config() {
  echo "output: $(quoted "$2")"
  echo "corpus: {prepared: $(quoted "$1")${MONO:+, monolingual: $(quoted "$MONO")}}"
  if [ -n "${3:-}" ]; then
    echo "teacher: {path: $(quoted "$3")}"
  else
    teacher="$(flags 4 4 128 256 4 0.3 0.1 0.005 2000 4096 1) --share-all-embeddings --max-epoch 38 ${TEACHER_FLAGS:-}"
    echo "teacher: {train: $(quoted "$teacher"), average: ${TEACHER_AVERAGE:-8}, seed: ${SEED:-1}}"
  fi
  echo "decode: {engine: ${ENGINE:-ctranslate2}, beam: ${BEAM:-5}, nbest: ${NBEST:-5}}"
  echo "select: {by: ${SELECT:-reference}}"
  echo "filter: $(quoted "--max-length 250 ${FILTER:-}")"
  [ "${PARTS:-both}" != pseudo ] || echo "mix: {original: false}"
  if [ "$CACHE" != 0 ]; then echo "cache: {k: $CACHE}"; else echo "cache: false"; fi
  case $INIT in
    '') ;;
    teacher) layers="--encoder-layers $ENCODER_LAYERS --decoder-layers $DECODER_LAYERS" ;;
    *) layers=$INIT ;;
  esac
  [ -z "$INIT" ] || echo "init: $(quoted "--embed-dim $DIM --ffn-dim $FFN --heads $HEADS $layers")"
  distilled="--kd-alpha ${ALPHA:-0.5} --kd-temperature ${TEMPERATURE:-1.0} --upsample-primary ${UPSAMPLE:-1}"
  echo "students:"
  echo "  student: {train: $(quoted "$student $distilled"), $students}"
  if [ "${BASELINE:-1}" != 0 ]; then
    echo "  baseline: {train: $(quoted "$student"), $students, teacher: none, data: original${INIT:+, init: shape}}"
  fi
  echo "rounds: {count: ${ROUNDS:-0}, train: '--max-update ${ROUND_UPDATES:-$round}'}"
  check=${CHECK_THRESHOLD:+, check-threshold: $CHECK_THRESHOLD}
  echo "export:"
  for quantization in float32 int8; do
    echo "  $quantization: {format: ctranslate2, quantization: $quantization$check}"
  done
  if [ "${BASELINE:-1}" != 0 ]; then baseline=baseline; else baseline=teacher; fi
  echo "evaluate: {beam: ${BEAM:-5}, baseline: $baseline}"
  echo "workers: ${WORKERS:-1}"
}

file=$(mktemp "${TMPDIR:-/tmp}/distill_pipeline.XXXXXX")
trap 'rm -f "$file"' EXIT
config "$@" >"$file"
distill=(kd-plugin distill)
[ -z "${PYTHON:-}" ] || distill=("$PYTHON" -m kd_plugin.cli distill)
"${distill[@]}" "$file"
echo
cat "$2/evaluation/evaluation.md"
echo "$2/report.html shows the results as charts; student-int8 is the model to use"
