#!/usr/bin/env bash
# Trains a teacher, a transformer, with plain fairseq-train, then averages its last epochs.
#
#   train-teacher.sh DATA_BIN SAVE_DIR [further fairseq-train flags]      → SAVE_DIR/averaged.pt
#
# Each value below can be set from outside: `SEED=2 train-teacher.sh …`. After an interruption, run again to resume.
set -euo pipefail
# OpenMP's threads sleep while they wait for each other; busy waiting would slow down other work and themselves.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 2 ] || { echo "usage: ${0##*/} DATA_BIN SAVE_DIR [further fairseq-train flags]" >&2; exit 2; }
data=$1 save_dir=$2
shift 2

ENCODER_LAYERS=${ENCODER_LAYERS:-4}
DECODER_LAYERS=${DECODER_LAYERS:-4}
DIM=${DIM:-128}
FFN=${FFN:-256}
HEADS=${HEADS:-4}
DROPOUT=${DROPOUT:-0.3}
LABEL_SMOOTHING=${LABEL_SMOOTHING:-0.1}
LR=${LR:-0.005}
WARMUP=${WARMUP:-2000}
MAX_TOKENS=${MAX_TOKENS:-4096}
UPDATE_FREQ=${UPDATE_FREQ:-1}
MAX_EPOCH=${MAX_EPOCH:-38}
AVERAGE=${AVERAGE:-8}
SEED=${SEED:-1}
# The plugin takes no part in this training; it lets torch >= 2.6 read fairseq's checkpoints safely when resuming.
USER_DIR=${USER_DIR:-$(cd "$here/../../kd_plugin" && pwd)}

fairseq-train "$data" --user-dir "$USER_DIR" --save-dir "$save_dir" --seed "$SEED" \
    --task translation \
    --arch transformer --share-all-embeddings --dropout "$DROPOUT" \
    --encoder-layers "$ENCODER_LAYERS" --encoder-embed-dim "$DIM" \
    --encoder-ffn-embed-dim "$FFN" --encoder-attention-heads "$HEADS" \
    --decoder-layers "$DECODER_LAYERS" --decoder-embed-dim "$DIM" \
    --decoder-ffn-embed-dim "$FFN" --decoder-attention-heads "$HEADS" \
    --criterion label_smoothed_cross_entropy --label-smoothing "$LABEL_SMOOTHING" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr "$LR" --lr-scheduler inverse_sqrt --warmup-updates "$WARMUP" \
    --max-tokens "$MAX_TOKENS" --update-freq "$UPDATE_FREQ" --required-batch-size-multiple 1 --max-epoch "$MAX_EPOCH" \
    --best-checkpoint-metric nll_loss --keep-last-epochs "$AVERAGE" --update-epoch-batch-itr True \
    --log-format simple --log-interval 100 "$@"

"${PYTHON:-python}" "$here/average_checkpoints.py" "$save_dir" --last "$AVERAGE" --output "$save_dir/averaged.pt"
