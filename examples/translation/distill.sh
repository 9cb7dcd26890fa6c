#!/usr/bin/env bash
# Distils a student from a teacher that runs beside it, then averages its last checkpoints. KD=0 trains the same student
# without the teacher: same data order, seed, updates and settings, so that the two can be compared.
#
#   distill.sh DATA_BIN TEACHER SAVE_DIR [further fairseq-train flags]      → SAVE_DIR/averaged.pt
#
# TEACHER is a checkpoint, or several: a.pt:b.pt (see TEACHER_WEIGHTS), a Hugging Face folder, or the folder of a cache
# written by kd-plugin cache. With KD=0 it is not read.
# Each value below can be set from outside: `ALPHA=0.3 distill.sh …`. After an interruption, run it again to resume.
set -euo pipefail
# OpenMP's threads sleep while they wait for each other; busy waiting would slow down other work and themselves.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 3 ] || { echo "usage: ${0##*/} DATA_BIN TEACHER SAVE_DIR [further fairseq-train flags]" >&2; exit 2; }
data=$1 teacher=$2 save_dir=$3
shift 3

KD=${KD:-1}
ALPHA=${ALPHA:-0.5} # weight of the cross-entropy: 1 is plain training, 0 uses the teacher alone
TEMPERATURE=${TEMPERATURE:-1.0}
TEACHER_WEIGHTS=${TEACHER_WEIGHTS:-} # of several teachers: 0.7,0.3
ENCODER_LAYERS=${ENCODER_LAYERS:-2}
DECODER_LAYERS=${DECODER_LAYERS:-2}
DIM=${DIM:-64}
FFN=${FFN:-128}
HEADS=${HEADS:-4}
DROPOUT=${DROPOUT:-0.1}
LABEL_SMOOTHING=${LABEL_SMOOTHING:-0.1}
LR=${LR:-0.005}
WARMUP=${WARMUP:-2000}
MAX_TOKENS=${MAX_TOKENS:-4096}
UPDATE_FREQ=${UPDATE_FREQ:-1}
MAX_EPOCH=${MAX_EPOCH:-38}
AVERAGE=${AVERAGE:-8} # how many epochs to average; with SAVE_INTERVAL_UPDATES, for long epochs: how many such intervals
SAVE_INTERVAL_UPDATES=${SAVE_INTERVAL_UPDATES:-}
UPSAMPLE_PRIMARY=${UPSAMPLE_PRIMARY:-1} # how often an epoch reads `train` if there is a train1 too
SEED=${SEED:-1}
# With KD=0 the plugin takes no part in the training; it lets torch >= 2.6 read fairseq's checkpoints when resuming.
USER_DIR=${USER_DIR:-$(cd "$here/../../kd_plugin" && pwd)}

[ -n "$save_dir" ] || { echo "${0##*/}: SAVE_DIR is empty" >&2; exit 1; }
if [ "$KD" != 0 ]; then # fairseq-train resumes from what it finds in SAVE_DIR, and overwrites it with its checkpoints
    IFS=: read -r -a teachers <<<"$teacher"
    for path in "${teachers[@]}"; do
        case "${path##*/}" in checkpoint*.pt | averaged.pt) ;; *) continue ;; esac
        if [ "$(dirname "$path")" -ef "$save_dir" ]; then
            echo "${0##*/}: SAVE_DIR $save_dir contains the teacher $path, which would be overwritten: name another" >&2
            exit 1
        fi
    done
fi

if [ "$KD" = 0 ]; then
    objective=(--task translation --criterion label_smoothed_cross_entropy)
else
    kind=--teacher-path
    # a folder of Hugging Face's says what it is in its config.json; a cache has none
    [ ! -d "$teacher" ] || [ -f "$teacher/config.json" ] || kind=--teacher-cache
    objective=(--task distillation_translation "$kind" "$teacher"
        --criterion kd_label_smoothed_cross_entropy --kd-alpha "$ALPHA" --kd-temperature "$TEMPERATURE")
    [ -z "$TEACHER_WEIGHTS" ] || objective+=(--teacher-weights "$TEACHER_WEIGHTS")
fi

if [ -n "$SAVE_INTERVAL_UPDATES" ]; then
    saving=(--save-interval-updates "$SAVE_INTERVAL_UPDATES" --keep-interval-updates "$AVERAGE")
    averaging=(--every "$SAVE_INTERVAL_UPDATES")
else
    saving=() averaging=()
fi

fairseq-train "$data" --user-dir "$USER_DIR" --save-dir "$save_dir" --seed "$SEED" \
    "${objective[@]}" --label-smoothing "$LABEL_SMOOTHING" \
    --arch transformer --share-all-embeddings --dropout "$DROPOUT" \
    --encoder-layers "$ENCODER_LAYERS" --encoder-embed-dim "$DIM" \
    --encoder-ffn-embed-dim "$FFN" --encoder-attention-heads "$HEADS" \
    --decoder-layers "$DECODER_LAYERS" --decoder-embed-dim "$DIM" \
    --decoder-ffn-embed-dim "$FFN" --decoder-attention-heads "$HEADS" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr "$LR" --lr-scheduler inverse_sqrt --warmup-updates "$WARMUP" \
    --max-tokens "$MAX_TOKENS" --update-freq "$UPDATE_FREQ" --required-batch-size-multiple 1 --max-epoch "$MAX_EPOCH" \
    --upsample-primary "$UPSAMPLE_PRIMARY" \
    --best-checkpoint-metric nll_loss --keep-last-epochs "$AVERAGE" ${saving[@]+"${saving[@]}"} --update-epoch-batch-itr True \
    --log-format simple --log-interval 100 "$@"

"${PYTHON:-python}" "$here/average_checkpoints.py" "$save_dir" --last "$AVERAGE" ${averaging[@]+"${averaging[@]}"} --output "$save_dir/averaged.pt"
