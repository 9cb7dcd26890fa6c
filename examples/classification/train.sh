#!/usr/bin/env bash
# Trains a student that classifies sentences, with or without a teacher.
#
#   train.sh DATA_BIN SAVE_DIR [further fairseq-train flags]      → SAVE_DIR/checkpoint_best.pt, best on dev
#
# Each value below can be set from outside: `ARCH=bilstm SEED=2 train.sh …`.
#   ARCH        text_cnn, bilstm, bag_of_embeddings, or roberta for a small encoder
#   TEACHER     a fairseq checkpoint or a Hugging Face folder; CACHE: a cache of its answers instead; neither: without
#   UNLABELLED  a binarised folder of unlabelled text, for which there must be a teacher
set -euo pipefail
TASK=sentence_prediction

# sets `sizes`, the flags of an architecture
sizes_of() {
  case "$1" in
    text_cnn) sizes=(--encoder-embed-dim "$DIM" --filters 64) ;;
    bilstm) sizes=(--encoder-embed-dim "$DIM" --encoder-hidden-size 96) ;;
    roberta)
      sizes=(--encoder-layers 2 --encoder-embed-dim "$DIM" --encoder-ffn-embed-dim 256 --encoder-attention-heads 4
        --max-positions 256 --attention-dropout 0.1 --pooler-dropout 0.1) ;;
    *) sizes=(--encoder-embed-dim "$DIM") ;;
  esac
}

source "$(dirname "${BASH_SOURCE[0]}")/../labelling.sh"
