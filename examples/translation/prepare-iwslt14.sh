#!/usr/bin/env bash
# IWSLT 2014 German-English (TED talks, about 160,000 training pairs) as in fairseq's own example, with sentencepiece
# instead of Moses and BPE: lower-cased, length filter, every 23rd training pair for validation, five test sets in one.
#
#   prepare-iwslt14.sh [SRC TGT [FOLDER | de-en.tgz]]      default: de en, downloaded
#
# FOLDER contains train.tags.de-en.{de,en} and IWSLT14.TED*.xml, directly or in a folder de-en.
# Variables: OUT (folder to create), LOWERCASE (1; 0 keeps case),
# VOCAB (10000), or SPM and DICT: the sentencepiece model and dictionary of an existing teacher. Also WORKERS, PYTHON.
set -euo pipefail
VOCAB=${VOCAB:-10000}
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case $# in 0 | 2 | 3) ;; *) die "usage: ${0##*/} [SRC TGT [FOLDER | de-en.tgz]]" ;; esac
case ${1:-de}-${2:-en} in de-en | en-de) ;; *) die "IWSLT14 is prepared for de en or en de, not $1 $2" ;; esac
from=${3:-}
URL=${URL:-http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz}

begin "${OUT:-iwslt14.${1:-de}-${2:-en}}" "${1:-de}" "${2:-en}"

if [ -z "$from" ]; then
    downloads=${DOWNLOADS:-iwslt14.downloads}
    mkdir -p "$downloads"
    from=$downloads/de-en.tgz
    download "$URL" "$from"
fi
if [ -f "$from" ]; then
    corpus verify "$(dirname "$from")" "${from##*/}"
    mkdir "$tmp/tgz"
    tar -xzf "$from" -C "$tmp/tgz" || die "$from cannot be unpacked; is the download complete?"
    from=$tmp/tgz
fi
[ ! -d "$from/de-en" ] || from=$from/de-en
[ -f "$from/train.tags.de-en.de" ] || die "$from has no train.tags.de-en.de: is it the unpacked de-en.tgz?"

lowercase=--lowercase
[ "${LOWERCASE:-1}" != 0 ] || lowercase=
corpus iwslt14 "$from" "$src" "$tgt" "$tmp/raw" $lowercase
rm -rf "$tmp/tgz"
echo "test iwslt14" >"$tmp/testsets.txt"

finish
