#!/usr/bin/env bash
# Trains a student that labels words, with or without a teacher.
#
#   train.sh DATA_BIN SAVE_DIR [further fairseq-train flags]      → SAVE_DIR/checkpoint_best.pt, best on valid
#
# DATA_BIN is a folder of kd-plugin prepare-tagging. Each value below can be set from outside: `ARCH=bilstm SEED=2 train.sh …`.
#   ARCH        text_cnn, bilstm, or roberta for a small encoder
#   TEACHER     a fairseq checkpoint or a Hugging Face folder; CACHE: a cache of its answers instead; neither: without
#   UNLABELLED  a binarised folder of unlabelled text, for which there must be a teacher
set -euo pipefail
# OpenMP's threads sleep while they wait for each other; busy waiting would slow down other work and themselves.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 2 ] || { echo "usage: ${0##*/} DATA_BIN SAVE_DIR [further fairseq-train flags]" >&2; exit 2; }
data=$1 save_dir=$2
shift 2

ARCH=${ARCH:-text_cnn}
TEACHER=${TEACHER:-}
CACHE=${CACHE:-}
UNLABELLED=${UNLABELLED:-}
ALPHA=${ALPHA:-0.3}
TEMPERATURE=${TEMPERATURE:-2}
CLASSES=${CLASSES:-13}
LAYERS=${LAYERS:-2}
DIM=${DIM:-128}
DROPOUT=${DROPOUT:-0.3}
LR=${LR:-0.002}
BATCH=${BATCH:-32}
MAX_UPDATE=${MAX_UPDATE:-600}
SEED=${SEED:-1}
USER_DIR=${USER_DIR:-$(cd "$here/../../kd_plugin" && pwd)}

case "$ARCH" in
  text_cnn) sizes=(--encoder-layers "$LAYERS" --encoder-embed-dim "$DIM" --filters 64) ;;
  bilstm) sizes=(--encoder-embed-dim "$DIM" --encoder-hidden-size 96) ;;
  *)
    sizes=(--encoder-layers "$LAYERS" --encoder-embed-dim "$DIM" --encoder-ffn-embed-dim 256 --encoder-attention-heads 4
      --attention-dropout 0.1 --pooler-dropout 0.1) ;;
esac
alpha=1
teacher=()
if [ -n "$TEACHER$CACHE" ]; then
  alpha=$ALPHA
  [ -n "$CACHE" ] && teacher=(--teacher-cache "$CACHE") || teacher=(--teacher-path "$TEACHER")
  [ -z "$UNLABELLED" ] || teacher+=(--kd-unlabelled "$UNLABELLED")
fi

fairseq-train "$data" --user-dir "$USER_DIR" --save-dir "$save_dir" --seed "$SEED" \
    --task distillation_sequence_tagging --criterion kd_sequence_tagging --num-classes "$CLASSES" \
    --kd-alpha "$alpha" --kd-temperature "$TEMPERATURE" ${teacher[@]+"${teacher[@]}"} \
    --arch "$ARCH" "${sizes[@]}" --dropout "$DROPOUT" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1 --weight-decay 0.0001 \
    --lr "$LR" --lr-scheduler polynomial_decay --warmup-updates $((MAX_UPDATE / 10)) --total-num-update "$MAX_UPDATE" \
    --max-update "$MAX_UPDATE" --batch-size "$BATCH" --required-batch-size-multiple 1 \
    --validate-interval-updates 100 --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric \
    --no-epoch-checkpoints --no-last-checkpoints --log-format simple --log-interval 100 "$@"
