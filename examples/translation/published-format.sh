#!/usr/bin/env bash
# Multi30k in its published format, from text to scores in one command: teachers, their translations of further English
# captions, back-translations of further German ones, students of 2.6M and 0.63M parameters with two seeds each, and their
# scores. On a GPU, all trainings of a kind run at once; on a CPU, this takes days.
#
#   published-format.sh TOK OUT [CAPTIONS_EN CAPTIONS_DE]      → OUT/valid/evaluation.md, OUT/test/evaluation.md
#
# TOK has {train,val,test_2016_flickr}.lc.norm.tok.{en,de}.gz; captions are raw text, gzipped or not. Needs the extra
# `published` (subword-nmt, sacremoses). Finished steps are skipped; a training goes on where it stopped.
# Variables: TEACHERS (layers of each: "4 4 6"), SEEDS ("1 2"), SIZES ("large small"), TEACHER_UPDATES (8000), UPDATES
# (9000), MAX_TOKENS (8192), START (a checkpoint in the dictionary of OUT/large that teachers and the back-translating model
# start from), JOBS (trainings at a time; default: 1 on a CPU, else all), FLAGS and FILTER (further flags of every training
# and of kd-plugin filter).
set -euo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
die() { echo "${0##*/}: $*" >&2; exit 1; }
[ $# = 2 ] || [ $# = 4 ] || { echo "usage: ${0##*/} TOK OUT [CAPTIONS_EN CAPTIONS_DE]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tok=$1 out=$2 captions_en=${3:-} captions_de=${4:-}
PYTHON=${PYTHON:-python} USER_DIR=${USER_DIR:-$(cd "$here/../../kd_plugin" && pwd)}
read -r -a teachers <<<"${TEACHERS:-4 4 6}"
read -r -a seeds <<<"${SEEDS:-1 2}"
read -r -a sizes <<<"${SIZES:-large small}"
read -r -a flags <<<"${FLAGS:-}"
read -r -a filter <<<"${FILTER:-}"
TEACHER_UPDATES=${TEACHER_UPDATES:-8000} UPDATES=${UPDATES:-9000} MAX_TOKENS=${MAX_TOKENS:-8192} START=${START:-}
test=test_2016_flickr
tag=madeupword0000 # one of fairseq's own fillers of dictionaries: what back-translations begin with (Caswell et al. 2019)
# of a size: BPE operations, width, feed-forward width
shape() {
    case "$1" in
        large) operations=10000 dim=128 ffn=256 ;;
        small) operations=3550 dim=64 ffn=192 ;;
        *) die "SIZES=${SIZES:-}: $1 is neither large nor small" ;;
    esac
}

for split in train val $test; do
    for lang in en de; do
        [ -f "$tok/$split.lc.norm.tok.$lang.gz" ] || die "$tok/$split.lc.norm.tok.$lang.gz is missing"
    done
done
for file in "$captions_en" "$captions_de" "$START"; do [ -z "$file" ] || [ -f "$file" ] || die "$file is missing"; done
for size in "${sizes[@]}"; do shape "$size"; done
[ "${sizes[0]}" = large ] || die "SIZES=${SIZES:-}: large comes first, because teachers have its subwords"
"$PYTHON" -c 'import sacremoses, subword_nmt' || die "sacremoses or subword-nmt is missing: pip install '.[published]'"
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    place=() JOBS=${JOBS:-99} engine=fairseq
else
    place=(--cpu) JOBS=${JOBS:-1} engine=auto
fi
for updates in "$TEACHER_UPDATES" "$UPDATES"; do
    [[ $updates =~ ^[1-9][0-9]+$ ]] || die "$updates updates: a whole number of 10 or more, because 10 checkpoints are averaged"
done
case $out in *[:,]*) die "$out: fairseq splits paths at colons and commas: name another OUT" ;; esac
# an OUT that holds something else would be taken for finished steps, or trained further
told="$tok $captions_en $captions_de ${TEACHERS:-} ${SEEDS:-} ${SIZES:-} $TEACHER_UPDATES $UPDATES $MAX_TOKENS $START ${FLAGS:-} ${FILTER:-}"
if [ -f "$out/settings" ]; then
    [ "$(cat "$out/settings")" = "$told" ] || die "$out was begun with other settings ($(cat "$out/settings")): name another OUT"
elif [ -d "$out" ] && [ -n "$(ls -A "$out")" ]; then
    die "$out is not empty, and this script did not begin it: name another OUT"
fi
mkdir -p "$out"
printf '%s\n' "$told" >"$out/settings"

# once NAME FUNCTION…: unless OUT/NAME exists, the function writes OUT/NAME.part, which is then renamed
once() {
    local name=$1
    shift
    [ ! -e "$out/$name" ] || return 0
    echo "== $name"
    rm -rf "$out/$name.part"
    "$@" "$out/$name.part"
    mv "$out/$name.part" "$out/$name"
}
text() {
    local split lang
    mkdir "$1"
    for split in train val $test; do
        for lang in en de; do gzip -cd "$tok/$split.lc.norm.tok.$lang.gz" >"$1/$split.$lang"; done
    done
}
# captions as the corpus is: lower-cased, normalised, tokenised
captions() {
    "$PYTHON" - "$1" "$2" >"$3" <<'PY'
import gzip, sys
import sacremoses
path, language = sys.argv[1:]
normalise, tokenise = sacremoses.MosesPunctNormalizer(language), sacremoses.MosesTokenizer(language)
with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
    for line in lines:
        words = tokenise.tokenize(normalise.normalize(line.strip().lower()), escape=False)
        print(" ".join(" ".join(words).split()))
PY
}
bpe() { "$PYTHON" -m subword_nmt.apply_bpe --codes "$out/$1/codes"; }
segmented() { bpe large <"$1" >"$2"; }
preprocess() { fairseq-preprocess --source-lang en --target-lang de --joined-dictionary --workers 1 "$@" >/dev/null; }
# subwords, dictionary and pairs of a size
vocabulary() {
    local size=$1 folder=$2 split lang
    mkdir "$folder"
    shape "$size"
    cat "$out/text/train.en" "$out/text/train.de" | "$PYTHON" -m subword_nmt.learn_bpe --symbols "$operations" >"$folder/codes"
    for split in train val $test; do
        for lang in en de; do
            "$PYTHON" -m subword_nmt.apply_bpe --codes "$folder/codes" <"$out/text/$split.$lang" >"$folder/$split.$lang"
        done
    done
    preprocess --trainpref "$folder/train" --destdir "$folder/dictionary" --dict-only
    grep -q "^$tag " "$folder/dictionary/dict.en.txt" || echo "$tag 1" >>"$folder/dictionary/dict.en.txt"
    preprocess --srcdict "$folder/dictionary/dict.en.txt" --trainpref "$folder/train" --validpref "$folder/val" \
        --testpref "$folder/$test" --destdir "$folder/data-bin"
}
# the pairs and both kinds of captions, in a size's subwords
mixed() {
    local size=$1 folder=$2 number=0 part lang
    cp -r "$out/$size/data-bin" "$folder"
    for part in forward backward; do
        [ -d "$out/$part" ] || continue
        number=$((number + 1))
        mkdir "$folder/$part"
        for lang in en de; do bpe "$size" <"$out/$part/pseudo.$lang" >"$folder/$part/text.$lang"; done
        [ $part = forward ] || sed -i "s/^/$tag /" "$folder/$part/text.en"
        preprocess --srcdict "$folder/dict.en.txt" --trainpref "$folder/$part/text" --destdir "$folder/$part/data-bin"
        for file in "$folder/$part/data-bin"/train.*; do mv "$file" "$folder/train$number.${file##*/train.}"; done
        rm -r "${folder:?}/$part"
    done
}
# translated TEXT MODELS SRC TGT BEAM FOLDER: goes on after an interruption
translated() {
    kd-plugin decode --input "$1" --path "$2" --dict-dir "$out/large/data-bin" -s "$3" -t "$4" --remove-bpe subword_nmt \
        --beam "$5" --max-tokens "$MAX_TOKENS" --engine "$engine" --output "$6"
}
filtered() { kd-plugin filter "$1" --output "$2" --text "$2/pseudo" ${filter[@]+"${filter[@]}"}; }
# train NAME SIZE LAYERS DATA SRC TGT UPDATES DROPOUT SEED [flag…]: OUT/NAME/averaged.pt, the mean of the last 10 of 20
# checkpoints
train() {
    local name=$1 size=$2 layers=$3 data=$4 src=$5 tgt=$6 updates=$7 dropout=$8 seed=$9 each
    shift 9
    [ ! -f "$out/$name/averaged.pt" ] || return 0
    echo "== $name"
    mkdir -p "$out/$name"
    each=$(((updates + 19) / 20))
    shape "$size"
    fairseq-train "$data" ${place[@]+"${place[@]}"} --user-dir "$USER_DIR" --save-dir "$out/$name" --seed "$seed" \
        --source-lang "$src" --target-lang "$tgt" --task distillation_translation \
        --criterion kd_label_smoothed_cross_entropy --kd-alpha 1 --label-smoothing 0.1 \
        --arch transformer --share-all-embeddings --dropout "$dropout" --encoder-layers "$layers" --decoder-layers "$layers" \
        --encoder-embed-dim "$dim" --decoder-embed-dim "$dim" --encoder-ffn-embed-dim "$ffn" --decoder-ffn-embed-dim "$ffn" \
        --encoder-attention-heads 4 --decoder-attention-heads 4 \
        --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1 --lr 5e-3 --lr-scheduler inverse_sqrt \
        --warmup-updates $(((updates + 5) / 6)) --max-tokens "$MAX_TOKENS" --max-update "$updates" --max-epoch 100000 \
        --validate-interval 100000 --save-interval-updates "$each" --keep-interval-updates 10 --keep-last-epochs 10 \
        --required-batch-size-multiple 1 --log-format simple --log-interval 100 "$@" \
        ${flags[@]+"${flags[@]}"} >>"$out/$name/train.log" 2>&1 || { tail -n 5 "$out/$name/train.log" >&2; return 1; }
    "$PYTHON" "$here/average_checkpoints.py" "$out/$name" --last 10 --every "$each" --output "$out/$name/averaged.pt"
}
# up to JOBS commands at a time; `together` waits for all, and fails if one has
jobs_begun=()
begin() {
    if [ ${#jobs_begun[@]} -ge "$JOBS" ]; then together; fi
    set -m # a process group each, so that what interrupts this script ends them too
    "$@" &
    set +m
    jobs_begun+=($!)
}
stop() { for job in ${jobs_begun[@]+"${jobs_begun[@]}"}; do kill -TERM -- "-$job" 2>/dev/null || true; done; }
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
together() {
    local job status=0
    for job in ${jobs_begun[@]+"${jobs_begun[@]}"}; do wait "$job" || status=1; done
    jobs_begun=()
    [ $status = 0 ] || die "a training failed: see OUT/*/train.log"
}

once text text
for size in "${sizes[@]}"; do once "$size" vocabulary "$size"; done
large=$out/large/data-bin start=(${START:+--finetune-from-model "$START"}) paths=
for number in "${!teachers[@]}"; do
    name=teacher$((number + 1))
    begin train "$name" large "${teachers[number]}" "$large" en de "$TEACHER_UPDATES" 0.3 $((number + 1)) \
        ${start[@]+"${start[@]}"}
    paths=${paths:+$paths:}$out/$name/averaged.pt
done
[ -z "$captions_de" ] || begin train reverse large 4 "$large" de en "$TEACHER_UPDATES" 0.3 1 ${start[@]+"${start[@]}"}
together
if [ -n "$captions_en" ]; then
    once captions.en captions "$captions_en" en
    once captions.bpe.en segmented "$out/captions.en"
    [ -e "$out/forward" ] || translated "$out/captions.bpe.en" "$paths" en de 5 "$out/forward.decoded"
    once forward filtered "$out/forward.decoded"
    once captions.de captions "$captions_de" de
    once captions.bpe.de segmented "$out/captions.de"
    [ -e "$out/backward" ] || translated "$out/captions.bpe.de" "$out/reverse/averaged.pt" de en 1 "$out/backward.decoded"
    once backward filtered "$out/backward.decoded"
fi
for size in "${sizes[@]}"; do
    once "$size-mixed" mixed "$size"
    dropout=0.1
    [ "$size" = large ] || dropout=0.05
    for seed in "${seeds[@]}"; do
        begin train "$size-seed$seed" "$size" 4 "$out/$size-mixed" en de "$UPDATES" "$dropout" "$seed" --upsample-primary 3
    done
done
together

# score FOLDER SPLIT: of every model; a size has its own subwords
score() {
    local size models seed teacher
    for size in "${sizes[@]}"; do
        models=()
        for seed in "${seeds[@]}"; do models+=(--model "$size-seed$seed=$out/$size-seed$seed/averaged.pt"); done
        if [ "$size" = large ]; then
            for teacher in "${!teachers[@]}"; do
                models+=(--model "teacher$((teacher + 1))=$out/teacher$((teacher + 1))/averaged.pt")
            done
            [ ${#teachers[@]} = 1 ] || models+=(--model "teachers=$paths")
        fi
        kd-plugin evaluate "${models[@]}" --test "$1=$out/$size/$1.en,$out/text/$1.de" --remove-bpe subword_nmt --tokenize none \
            -s en -t de --dict-dir "$out/$size/data-bin" --beam 5 --max-tokens 3000 --output "$2/$size"
    done
}
evaluated() { mkdir "$2" && score "$1" "$2"; }
once valid evaluated val
once test evaluated $test
cat "$out"/valid/*/evaluation.md "$out"/test/*/evaluation.md
