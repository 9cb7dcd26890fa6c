# shellcheck shell=bash
# Shared by prepare-*.sh and mix-data.sh; sourced, not run.
#
#   begin OUT SRC TGT  creates $tmp, a temporary folder beside OUT, with an empty $tmp/raw
#   (the caller fills $tmp/raw with SPLIT.LANG, one sentence per line: train, train1, …, valid, test, test1, …)
#   finish             creates the rest there and renames the folder to OUT: OUT is complete or absent
#
# Understood by all: SPM, DICT (an existing model and dictionary), VOCAB, WORKERS, PYTHON.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-$(command -v python || command -v python3 || true)}
SPM=${SPM:-}
DICT=${DICT:-}
VOCAB=${VOCAB:-4000}
WORKERS=${WORKERS:-1}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

corpus() {
    "$PYTHON" "$here/corpus.py" "$@"
}

# download URL FILE: an existing file is kept; a failed download leaves nothing behind
download() {
    [ -s "$2" ] && return 0
    local get
    echo "downloading $1"
    if command -v curl >/dev/null; then
        get=(curl --fail --location --silent --show-error --retry 3 --output)
    elif command -v wget >/dev/null; then
        get=(wget --quiet --tries 3 --output-document)
    else
        die "neither curl nor wget found: download $1 yourself and pass the local copy"
    fi
    "${get[@]}" "$2.part" "$1" || { rm -f "$2.part"; die "download failed: $1"; }
    mv "$2.part" "$2"
}

begin() {
    [ -n "$PYTHON" ] || die "no python on PATH"
    command -v fairseq-preprocess >/dev/null || die "no fairseq-preprocess on PATH: activate fairseq's environment"
    [ -z "$DICT" ] || [ -n "$SPM" ] || die "DICT needs SPM, the sentencepiece model whose pieces it lists"
    local file
    for file in "$SPM" "$DICT"; do
        [ -z "$file" ] || [ -f "$file" ] || die "no such file: $file"
    done
    out=${1%/} src=$2 tgt=$3
    [ -n "$out" ] || die "the folder to create has no name: give OUT"
    mkdir -p "$(dirname "$out")"
    tmp=$(mktemp -d "$out.tmp.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 130' INT TERM
    mkdir "$tmp/raw" "$tmp/spm"
}

finish() {
    local tests file valid=spm/valid number=0
    # Recorded in OUT, to recognise a finished folder made from the same input.
    {
        echo "pair $src-$tgt"
        echo "text $(corpus fingerprint "$tmp"/raw/*)"
        if [ -n "$SPM" ]; then
            echo "spm $(corpus fingerprint "$SPM" ${DICT:+"$DICT"})"
        else
            echo "vocab $VOCAB"
        fi
    } >"$tmp/prepared.txt"
    if [ -e "$out" ]; then
        if cmp -s "$tmp/prepared.txt" "$out/prepared.txt"; then
            echo "$out already exists, from the same input"
            return 0
        fi
        die "$out exists, but comes from other input or settings: remove it, or set OUT to another folder"
    fi

    if [ -n "$SPM" ]; then
        cp "$SPM" "$tmp/spm.model"
    else
        corpus train-spm "$tmp/spm.model" "$VOCAB" "$tmp/raw/train.$src" "$tmp/raw/train.$tgt"
    fi
    if [ -n "$DICT" ]; then
        cp "$DICT" "$tmp/dict.txt"
    else
        corpus write-dict "$tmp/spm.model" "$tmp/dict.txt"
    fi
    chmod u+w "$tmp/spm.model" "$tmp/dict.txt"
    corpus encode "$tmp/spm.model" "$tmp/dict.txt" "$tmp/raw" "$tmp/spm"

    tests=
    for file in "$tmp"/spm/test*."$src"; do
        file=${file##*/}
        tests=$tests${tests:+,}spm/${file%."$src"}
    done
    # Further training parts, train1 and so on: fairseq-preprocess takes only one, but several validation sets.
    while [ -f "$tmp/spm/train$((number + 1)).$src" ]; do
        number=$((number + 1))
        valid=$valid,spm/train$number
    done
    ( # inside the folder: names without spaces, and no temporary path in fairseq's log
        cd "$tmp"
        fairseq-preprocess --source-lang "$src" --target-lang "$tgt" --srcdict dict.txt --joined-dictionary \
            --trainpref spm/train --validpref "$valid" --testpref "$tests" --destdir data-bin --workers "$WORKERS"
    ) >"$tmp/preprocess.log" 2>&1 || { cat "$tmp/preprocess.log" >&2; die "fairseq-preprocess failed"; }
    for ((; number > 0; number--)); do
        for file in "$tmp/data-bin/valid$number".*; do
            mv "$file" "$tmp/data-bin/train$number.${file#*/data-bin/valid"$number".}"
        done
    done
    corpus check "$tmp/data-bin" "$tmp/raw" "$src-$tgt"
    rm "$tmp/preprocess.log"
    chmod 755 "$tmp"
    # os.rename refuses a folder that has appeared meanwhile; mv would move into it.
    "$PYTHON" -c 'import os, sys; os.rename(*sys.argv[1:])' "$tmp" "$out"
    echo "ready: $out (data-bin, raw, spm.model, dict.txt)"
}
