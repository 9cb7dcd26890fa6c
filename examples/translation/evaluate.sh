#!/usr/bin/env bash
# Translates the test sets of a prepared folder and scores them: one row per test set, appended to a Markdown table.
#
#   evaluate.sh PREPARED CHECKPOINT [NAME]      e.g. evaluate.sh multi30k.en-de student/averaged.pt "student, KD"
#
# PREPARED is a folder made by prepare-*.sh.
# Variables: RESULTS (results.md), OUT (folder for the translations: translations/NAME beside RESULTS),
# TESTS (all of PREPARED: "test test1"), BEAM, MAX_TOKENS, USER_DIR, PYTHON.
set -euo pipefail
# OpenMP's threads sleep while they wait for each other; busy waiting would slow down other work and themselves.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 2 ] || { echo "usage: ${0##*/} PREPARED CHECKPOINT [NAME]" >&2; exit 2; }
prepared=${1%/} checkpoint=$2 name=${3:-$2}

RESULTS=${RESULTS:-results.md}
BEAM=${BEAM:-5}
MAX_TOKENS=${MAX_TOKENS:-4096}
USER_DIR=${USER_DIR:-$(cd "$here/../../kd_plugin" && pwd)}

[ -f "$prepared/prepared.txt" ] || { echo "${0##*/}: $prepared was not made by prepare-*.sh" >&2; exit 1; }
[ -f "$checkpoint" ] || { echo "${0##*/}: no such checkpoint: $checkpoint" >&2; exit 1; }
pair=$(sed -n 's/^pair //p' "$prepared/prepared.txt")
src=${pair%-*} tgt=${pair#*-}
TESTS=${TESTS:-$(cut -d' ' -f1 "$prepared/testsets.txt")}
out=${OUT:-$(dirname "$RESULTS")/translations/${name//\//_}}
mkdir -p "$out"
# Records whose translations these are: translations of another checkpoint, or other files, are not overwritten.
job="$(cd "$prepared" && pwd) $(cd "$(dirname "$checkpoint")" && pwd)/${checkpoint##*/}"
if [ "$(cat "$out/.job" 2>/dev/null)" != "$job" ]; then
    for test in $TESTS; do
        for file in .job "generate-$test.txt" "$test.log" "$test.$tgt"; do
            [ ! -e "$out/$file" ] || {
                echo "${0##*/}: $out/$file already exists, from another checkpoint: give another NAME, or set OUT" >&2
                exit 1
            }
        done
    done
    echo "$job" >"$out/.job"
fi

for test in $TESTS; do
    # Nothing is skipped: a multiple of 8 would drop the last sentences of a set in newer fairseq.
    fairseq-generate "$prepared/data-bin" --user-dir "$USER_DIR" \
        --task translation --source-lang "$src" --target-lang "$tgt" \
        --path "$checkpoint" --gen-subset "$test" --beam "$BEAM" --remove-bpe sentencepiece \
        --max-tokens "$MAX_TOKENS" --required-batch-size-multiple 1 --results-path "$out" >"$out/$test.log" 2>&1 || {
        cat "$out/$test.log" >&2
        exit 1
    }
    rm -f "$out/$test.$tgt" # from an earlier run of this command
    "${PYTHON:-python}" "$here/score.py" "$out/generate-$test.txt" --reference "$prepared/raw/$test.$tgt" \
        --hypotheses "$out/$test.$tgt" --name "$name" --results "$RESULTS" \
        --test-set "$(sed -n "s/^$test //p" "$prepared/testsets.txt")"
done
