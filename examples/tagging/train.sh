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
TASK=sequence_tagging

# sets `sizes`, the flags of an architecture
sizes_of() {
  LAYERS=${LAYERS:-2}
  case "$1" in
    text_cnn) sizes=(--encoder-layers "$LAYERS" --encoder-embed-dim "$DIM" --filters 64) ;;
    bilstm) sizes=(--encoder-embed-dim "$DIM" --encoder-hidden-size 96) ;;
    *)
      sizes=(--encoder-layers "$LAYERS" --encoder-embed-dim "$DIM" --encoder-ffn-embed-dim 256 --encoder-attention-heads 4
        --attention-dropout 0.1 --pooler-dropout 0.1) ;;
  esac
}

source "$(dirname "${BASH_SOURCE[0]}")/../labelling.sh"
