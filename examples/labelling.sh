# shellcheck shell=bash
# Shared by classification/train.sh and tagging/train.sh; sourced, not run, with their arguments.
#
#   TASK     sentence_prediction or sequence_tagging; the caller sets it
#   sizes_of ARCH   the caller defines it; sets the array `sizes` to the flags of an architecture
# OpenMP's threads sleep while they wait for each other; busy waiting would slow down other work and themselves.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
[ $# -ge 2 ] || { echo "usage: ${0##*/} DATA_BIN SAVE_DIR [further fairseq-train flags]" >&2; exit 2; }
data=$1 save_dir=$2
shift 2

ARCH=${ARCH:-text_cnn}
TEACHER=${TEACHER:-}
CACHE=${CACHE:-}
UNLABELLED=${UNLABELLED:-}
ALPHA=${ALPHA:-0.3}
TEMPERATURE=${TEMPERATURE:-2}
DIM=${DIM:-128}
DROPOUT=${DROPOUT:-0.3}
LR=${LR:-0.002}
BATCH=${BATCH:-32}
MAX_UPDATE=${MAX_UPDATE:-600}
SEED=${SEED:-1}
USER_DIR=${USER_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../kd_plugin" && pwd)}

sizes=()
sizes_of "$ARCH"
alpha=1
teacher=()
if [ -n "$TEACHER$CACHE" ]; then
  alpha=$ALPHA
  [ -n "$CACHE" ] && teacher=(--teacher-cache "$CACHE") || teacher=(--teacher-path "$TEACHER")
  [ -z "$UNLABELLED" ] || teacher+=(--kd-unlabelled "$UNLABELLED")
fi

# the number of labels is that of DATA_BIN/label/dict.txt
fairseq-train "$data" --user-dir "$USER_DIR" --save-dir "$save_dir" --seed "$SEED" \
    --task "distillation_$TASK" --criterion "kd_$TASK" \
    --kd-alpha "$alpha" --kd-temperature "$TEMPERATURE" ${teacher[@]+"${teacher[@]}"} \
    --arch "$ARCH" "${sizes[@]}" --dropout "$DROPOUT" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1 --weight-decay 0.0001 \
    --lr "$LR" --lr-scheduler polynomial_decay --warmup-updates $((MAX_UPDATE / 10)) --total-num-update "$MAX_UPDATE" \
    --max-update "$MAX_UPDATE" --batch-size "$BATCH" --required-batch-size-multiple 1 \
    --validate-interval-updates 100 --save-interval-updates 100 --keep-interval-updates 1 \
    --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric \
    --no-epoch-checkpoints --no-last-checkpoints --log-format simple --log-interval 100 "$@"
