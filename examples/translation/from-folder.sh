#!/usr/bin/env bash
# A fairseq student from a teacher that is not a fairseq checkpoint: a folder with OPUS-MT, NLLB, M2M100, mBART, T5 …
#
#   from-folder.sh TEACHER CORPUS OUT [further flags of distill.sh's fairseq-train]
#
# TEACHER is a Hugging Face folder (config.json, safetensors, tokenizer), CORPUS a folder with train.SRC, train.TGT,
# valid.SRC, …, test.SRC, test.TGT as raw text. OUT gets the vocabulary, the data, the student and its evaluation. A step
# whose result exists is skipped.
# Variables: SRC, TGT (en, de); TEACHER_SRC, TEACHER_TGT (the teacher's own codes: eng_Latn, deu_Latn); WAY (cache, online,
# sequence or plain: what the student learns from); K (entries per token in a cache); COVERAGE (of the pieces); FILTER
# (flags of kd-plugin filter, for WAY=sequence); SEED and all others of distill.sh, whose ALPHA is 0.2 here; EVALUATE=0
# skips the evaluation.
set -euo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 3 ] || { echo "usage: ${0##*/} TEACHER CORPUS OUT [further fairseq-train flags]" >&2; exit 2; }
teacher=${1%/} corpus=${2%/} out=${3%/}
shift 3

PYTHON=${PYTHON:-python}
SRC=${SRC:-en}
TGT=${TGT:-de}
TEACHER_SRC=${TEACHER_SRC:-}
TEACHER_TGT=${TEACHER_TGT:-}
WAY=${WAY:-cache}
K=${K:-16}
COVERAGE=${COVERAGE:-0.9999}
FILTER=${FILTER:-}
EVALUATE=${EVALUATE:-1}
export ALPHA=${ALPHA:-0.2}

die() { echo "${0##*/}: $*" >&2; exit 1; }
case "$WAY" in cache | online | sequence | plain) ;; *) die "WAY=$WAY: must be cache, online, sequence or plain" ;; esac
[ -f "$teacher/config.json" ] || die "$teacher: not a Hugging Face folder (no config.json)"
compgen -G "$teacher/*.safetensors" >/dev/null ||
    die "$teacher: has no safetensors. If you trust it, load it with transformers and save it with save_pretrained"
for split in train valid test; do
    for lang in "$SRC" "$TGT"; do
        [ -s "$corpus/$split.$lang" ] || die "$corpus/$split.$lang is missing or empty"
    done
done
codes=() model_codes=()
[ -z "$TEACHER_SRC" ] || { codes+=(--teacher-source-lang "$TEACHER_SRC"); model_codes+=(--model-source-lang "$TEACHER_SRC"); }
[ -z "$TEACHER_TGT" ] || { codes+=(--teacher-target-lang "$TEACHER_TGT"); model_codes+=(--model-target-lang "$TEACHER_TGT"); }
mkdir -p "$out"
out=$(cd "$out" && pwd)

# of KIND LANG: a file of the vocabulary, in OUT; a single one if both sides share it
of() {
    local file=vocabulary/${1%.*}.$2.${1##*.}
    [ -f "$out/$file" ] || file=vocabulary/$1
    echo "$file"
}

# segment FILE LANG OUT: raw text, segmented line by line into pieces of the vocabulary
segment() {
    "$PYTHON" - "$out/$(of sentencepiece.model "$2")" "$1" "$3.new" <<'PY'
import sys

import sentencepiece

model, text, pieces = sys.argv[1:]
processor = sentencepiece.SentencePieceProcessor(model_file=model)
with open(text, encoding="utf-8", newline="\n") as lines, open(pieces, "w", encoding="utf-8", newline="\n") as written:
    for line in lines:
        print(*processor.encode(line.rstrip("\n"), out_type=str), file=written)
PY
    mv "$3.new" "$3"
}

# binarise NAME PREFIX: PREFIX.SRC and PREFIX.TGT for training, the corpus's for validation
binarise() {
    local split lang
    [ ! -d "$out/$1" ] || return 0
    mkdir -p "$out/pieces.$1"
    for lang in "$SRC" "$TGT"; do
        segment "$2.$lang" "$lang" "$out/pieces.$1/train.$lang"
        for split in valid test; do
            segment "$corpus/$split.$lang" "$lang" "$out/pieces.$1/$split.$lang"
        done
    done
    rm -rf "$out/$1.new"
    ( # inside the folder: fairseq splits names at commas
        cd "$out"
        fairseq-preprocess -s "$SRC" -t "$TGT" --trainpref "pieces.$1/train" --validpref "pieces.$1/valid" \
            --testpref "pieces.$1/test" --srcdict "$(of dict.txt "$SRC")" --tgtdict "$(of dict.txt "$TGT")" \
            --destdir "$1.new" >"$1.log" 2>&1
    ) || { cat "$out/$1.log" >&2; die "fairseq-preprocess failed"; }
    mv "$out/$1.new" "$out/$1"
}

# One dictionary for both sides, so that a small student can share its embeddings.
[ -d "$out/vocabulary" ] || kd-plugin vocabulary "$teacher" -s "$SRC" -t "$TGT" --joined-dictionary \
    --subset "$corpus/train.$SRC" "$corpus/train.$TGT" --coverage "$COVERAGE" --output "$out/vocabulary"
binarise data-bin "$corpus/train"

student=$out/student-$WAY data=$out/data-bin
case "$WAY" in
    plain)
        KD=0 bash "$here/distill.sh" "$data" "$teacher" "$student" "$@"
        ;;
    online)
        bash "$here/distill.sh" "$data" "$teacher" "$student" ${codes[@]+"${codes[@]}"} "$@"
        ;;
    cache)
        kd-plugin cache "$data" --subset train,valid --teacher-path "$teacher" ${codes[@]+"${codes[@]}"} --k "$K" \
            --cache-dir "$out/cache"
        bash "$here/distill.sh" "$data" "$out/cache" "$student" "$@"
        ;;
    sequence)
        # The teacher's translation of every source sentence replaces the reference (Kim & Rush 2016).
        kd-plugin decode --path "$teacher" ${model_codes[@]+"${model_codes[@]}"} -s "$SRC" -t "$TGT" \
            --input "$corpus/train.$SRC" --output "$out/translations"
        # shellcheck disable=SC2086 # several flags
        kd-plugin filter "$out/translations" --output "$out/filtered" --text "$out/distilled" $FILTER
        binarise distilled-bin "$out/distilled"
        KD=0 bash "$here/distill.sh" "$out/distilled-bin" "$teacher" "$student" "$@"
        ;;
esac

[ "$EVALUATE" = 0 ] || [ -f "$out/evaluation-$WAY/evaluation.json" ] || kd-plugin evaluate --model "teacher=$teacher" ${model_codes[@]+"${model_codes[@]}"} \
    --model "$WAY=$student/averaged.pt" --baseline teacher --test "test=$corpus/test.$SRC,$corpus/test.$TGT" \
    --source-sentencepiece-model "$out/$(of sentencepiece.model "$SRC")" \
    --target-sentencepiece-model "$out/$(of sentencepiece.model "$TGT")" \
    --dict-dir "$data" -s "$SRC" -t "$TGT" --output "$out/evaluation-$WAY"
