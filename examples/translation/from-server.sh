#!/usr/bin/env bash
# A fairseq student from a language model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, an API.
#
#   from-server.sh URL MODEL CORPUS OUT [further flags of kd-plugin decode]
#
# CORPUS contains train.SRC (references are not needed), valid.SRC, valid.TGT, test.SRC and test.TGT as raw text; if there
# is also a train.TGT, the student learns from both: `train` has the references and `train1` the model's translations.
# OUT gets the translations, the data, the student and its evaluation. A step whose result exists is skipped.
# Variables: SRC, TGT (en, de); FILTER (flags of kd-plugin filter); VOCAB (pieces of both languages); all of distill.sh;
# TRAIN_FLAGS (further flags of fairseq-train); EVALUATE=0 skips the evaluation.
set -euo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 4 ] || { echo "usage: ${0##*/} URL MODEL CORPUS OUT [further flags of kd-plugin decode]" >&2; exit 2; }
url=$1 model=$2 corpus=${3%/} whole=${4%/}
shift 4

SRC=${SRC:-en}
TGT=${TGT:-de}
FILTER=${FILTER:-}
EVALUATE=${EVALUATE:-1}
for file in "train.$SRC" {valid,test}.{"$SRC","$TGT"}; do
    [ -s "$corpus/$file" ] || die "$corpus/$file is missing or empty"
done
mkdir -p "$whole"

kd-plugin decode --engine http --url "$url" --model "$model" -s "$SRC" -t "$TGT" --input "$corpus/train.$SRC" \
    --output "$whole/translations" "$@"
# shellcheck disable=SC2086 # several flags
kd-plugin filter "$whole/translations" --output "$whole/filtered" --text "$whole/distilled" $FILTER

begin "$whole/prepared" "$SRC" "$TGT"
parts=("$whole/distilled")
[ ! -s "$corpus/train.$TGT" ] || parts=("$corpus/train" "${parts[@]}")
for part in "${!parts[@]}"; do
    number=${part#0}
    corpus pairs "${parts[part]}.$SRC" "${parts[part]}.$TGT" "$tmp/raw/train$number.$SRC" "$tmp/raw/train$number.$TGT"
done
for file in {valid,test}.{"$SRC","$TGT"}; do
    cp "$corpus/$file" "$tmp/raw/$file"
done
echo "test test" >"$tmp/testsets.txt"
finish
rm -rf "$tmp"

# shellcheck disable=SC2086 # several flags
KD=0 bash "$here/distill.sh" "$whole/prepared/data-bin" "" "$whole/student" ${TRAIN_FLAGS:-}

[ "$EVALUATE" = 0 ] || [ -f "$whole/evaluation/evaluation.json" ] || kd-plugin evaluate \
    --model "student=$whole/student/averaged.pt" --test "test=$corpus/test.$SRC,$corpus/test.$TGT" \
    --sentencepiece-model "$whole/prepared/spm.model" --dict-dir "$whole/prepared/data-bin" -s "$SRC" -t "$TGT" \
    --output "$whole/evaluation"
