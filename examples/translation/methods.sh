#!/usr/bin/env bash
# Trains the same student by several methods and seeds for equal updates, and writes down what each costs.
#
#   methods.sh DATA_BIN TEACHER OUT METHODS [further fairseq-train flags]      → OUT/NAME-SEED/averaged.pt, OUT/costs.tsv
#
# METHODS is a file with a line per method, three columns with tabs between them: its name, the checkpoint that its student
# starts from (- for random weights), and its flags of fairseq-train. methods.tsv beside this script is an example.
# SEEDS ("1 2"), MAX_UPDATE (5000), AVERAGE (4: as many checkpoints, a twentieth of the updates apart), and ALPHA, LR, DIM and
# others as in distill.sh. Finished trainings are skipped, and an interrupted one is resumed.
# costs.tsv: name, seed, CPU seconds and seconds on the clock, summed over a training's parts if it was interrupted.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "${0##*/}: $*" >&2; exit 1; }
[ $# -ge 4 ] || { echo "usage: ${0##*/} DATA_BIN TEACHER OUT METHODS [further fairseq-train flags]" >&2; exit 2; }
data=$1 teacher=$2 out=$3 methods=$4
shift 4
MAX_UPDATE=${MAX_UPDATE:-5000} AVERAGE=${AVERAGE:-4}
read -r -a seeds <<<"${SEEDS:-1 2}"
[[ $MAX_UPDATE =~ ^[1-9][0-9]*$ ]] && [ "$MAX_UPDATE" -ge "$AVERAGE" ] || die "MAX_UPDATE=$MAX_UPDATE is not $AVERAGE or more"
[ -r "$methods" ] || die "$methods: cannot be read"
each=$(((MAX_UPDATE + 19) / 20))

names=() starts=() flags=()
while IFS=$'\t' read -r name start words || [ -n "$name" ]; do
    [[ -z $name || $name == \#* ]] && continue
    [[ $name =~ ^[A-Za-z0-9._-]+$ ]] || die "$methods: \"$name\" cannot name a folder"
    [[ " ${names[*]-} " != *" $name "* ]] || die "$methods: $name occurs twice"
    [ -n "$start" ] || die "$methods: $name has no second column: a checkpoint, or -"
    [ "$start" = - ] || [ -f "$start" ] || die "$methods: $name starts from $start, which is no file"
    names+=("$name") starts+=("$start") flags+=("$words")
done <"$methods"
[ ${#names[@]} -gt 0 ] || die "$methods: names no method"
mkdir -p "$out"

# train NAME SEED START FLAG…
train() {
    local folder=$out/$1-$2 seed=$2 start=$3 told
    local TIMEFORMAT='%U %S %R'
    shift 3
    told="$data $teacher $seed $start $MAX_UPDATE $AVERAGE ${ALPHA:-} ${LR:-} ${WARMUP:-} ${MAX_TOKENS:-} ${DIM:-} $*"
    [ ! -f "$folder.settings" ] || [ "$(cat "$folder.settings")" = "$told" ] ||
        die "$folder was begun with other settings ($(cat "$folder.settings")): name another OUT"
    printf '%s\n' "$told" >"$folder.settings"
    [ "$start" = - ] || set -- --finetune-from-model "$start" "$@"
    if [ -f "$folder/averaged.pt" ]; then
        echo "${folder##*/}: done before"
        return
    fi
    echo "${folder##*/}: $*"
    { time env SEED="$seed" AVERAGE="$AVERAGE" SAVE_INTERVAL_UPDATES="$each" bash "$here/distill.sh" "$data" "$teacher" "$folder" \
        --max-update "$MAX_UPDATE" --max-epoch 100000 "$@" >>"$folder.log" 2>&1; } 2>>"$folder.time" ||
        die "${folder##*/} failed: see $folder.log"
}

for seed in "${seeds[@]}"; do
    for number in "${!names[@]}"; do
        read -r -a words <<<"${flags[number]}"
        train "${names[number]}" "$seed" "${starts[number]}" ${words[@]+"${words[@]}"} "$@"
    done
done

printf 'method\tseed\tCPU seconds\tseconds\n' >"$out/costs.tsv"
models=()
for name in "${names[@]}"; do
    for seed in "${seeds[@]}"; do
        models+=(--model "$name-$seed=$out/$name-$seed/averaged.pt")
        [ ! -f "$out/$name-$seed.time" ] || awk -v "name=$name" -v "seed=$seed" \
            'NF == 3 { cpu += $1 + $2; wall += $3 } END { printf "%s\t%s\t%.1f\t%.1f\n", name, seed, cpu, wall }' "$out/$name-$seed.time" >>"$out/costs.tsv"
    done
done
cat "$out/costs.tsv"
echo "compare them, on validation data first: kd-plugin evaluate ${models[*]} …"
