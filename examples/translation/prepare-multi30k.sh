#!/usr/bin/env bash
# Multi30k task 1 (image captions, 29,000 training pairs), ready for fairseq-train.
#
#   prepare-multi30k.sh [SRC TGT [FOLDER]]      default: en de, downloaded
#
# FOLDER contains train.LANG.gz, val.LANG.gz and TEST.LANG.gz; a SHA256SUMS file there is checked.
# Variables: OUT (folder to create), TESTS (names of the test sets; fairseq calls them test, test1, … in this order),
# VOCAB (4000), or SPM and DICT: the sentencepiece model and dictionary of an existing teacher. Also WORKERS, PYTHON.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case $# in 0 | 2 | 3) ;; *) die "usage: ${0##*/} [SRC TGT [FOLDER]]" ;; esac
folder=${3:-}
TESTS=${TESTS:-test_2016_flickr test_2017_flickr}
URL=${URL:-https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw}

begin "${OUT:-multi30k.${1:-en}-${2:-de}}" "${1:-en}" "${2:-de}"

files=()
for name in train val $TESTS; do
    files+=("$name.$src.gz" "$name.$tgt.gz")
done
if [ -z "$folder" ]; then
    folder=${DOWNLOADS:-multi30k.downloads}
    mkdir -p "$folder"
    for file in "${files[@]}"; do download "$URL/$file" "$folder/$file"; done
fi
for file in "${files[@]}"; do
    [ -f "$folder/$file" ] || die "$folder/$file is missing"
done
corpus verify "$folder" "${files[@]}"

pairs() {
    corpus pairs "$folder/$1.$src.gz" "$folder/$1.$tgt.gz" "$tmp/raw/$2.$src" "$tmp/raw/$2.$tgt"
}
pairs train train
pairs val valid
number=
for name in $TESTS; do
    pairs "$name" "test$number"
    echo "test$number $name" >>"$tmp/testsets.txt"
    number=$((${number:-0} + 1))
done

finish
