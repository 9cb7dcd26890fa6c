#!/usr/bin/env bash
# Training data in several parts, with the subwords and the dictionary of a prepared folder: the original pairs, and the
# pairs that kd-plugin decode, select, filter or import wrote with --text PREFIX.
#
#   mix-data.sh PREPARED OUT PART [PART …]      PART: the word original, or PREFIX of PREFIX.SRC and PREFIX.TGT
#
#   mix-data.sh multi30k.en-de pseudo.en-de pseudo/best             sequence-level distillation alone
#   mix-data.sh multi30k.en-de mixed.en-de original pseudo/best     both; fairseq reads train and train1 together
#
# OUT is a prepared folder like PREPARED, with its validation and test sets: train on OUT/data-bin. The first part is
# fairseq's `train`, the others are train1, train2, …; --upsample-primary N reads the first one N times per epoch
# (--task translation needs it, at least 1).
# Variables: WORKERS, PYTHON.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 3 ] || die "usage: ${0##*/} PREPARED OUT PART [PART …]"
prepared=${1%/} mixed=$2
shift 2
[ -f "$prepared/prepared.txt" ] || die "$prepared was not made by prepare-*.sh"
SPM=$prepared/spm.model DICT=$prepared/dict.txt
pair=$(sed -n 's/^pair //p' "$prepared/prepared.txt")
begin "$mixed" "${pair%-*}" "${pair#*-}"

number=
for part in "$@"; do
    [ "$part" != original ] || part=$prepared/raw/train
    for lang in "$src" "$tgt"; do
        [ -f "$part.$lang" ] || die "$part.$lang is missing"
        [ -s "$part.$lang" ] || die "$part.$lang is empty"
    done
    corpus pairs "$part.$src" "$part.$tgt" "$tmp/raw/train$number.$src" "$tmp/raw/train$number.$tgt"
    number=$((${number:-0} + 1))
done
for file in "$prepared"/raw/*; do
    case "${file##*/}" in
        train*) ;;
        *) cp "$file" "$tmp/raw/" ;;
    esac
done
cp "$prepared/testsets.txt" "$tmp/"

finish
