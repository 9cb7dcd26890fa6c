#!/usr/bin/env bash
# Distils in links: the teacher teaches an assistant, the assistant a smaller one, the last one is the student (teacher
# assistants, Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393). The same size several times gives born-again models
# (Furlanello et al. 2018, https://arxiv.org/abs/1805.04770).
#
#   chain.sh DATA_BIN TEACHER OUT SIZE [SIZE …]      → OUT/link1/averaged.pt, OUT/link2/averaged.pt, …, OUT/direct/averaged.pt
#
#   chain.sh multi30k.en-de/data-bin teacher.pt chain 4,2,128,256,4 2,2,64,128,4     an assistant, then the student
#   chain.sh multi30k.en-de/data-bin teacher.pt again 2,2,64,128,4 2,2,64,128,4      born again once
#
# SIZE is ENCODER_LAYERS,DECODER_LAYERS,DIM,FFN,HEADS. All links together make MAX_UPDATE updates, in equal shares, or as
# SHARES says: SHARES=1,3 gives the student three times the assistant's. DIRECT=1 also trains the last size by the first teacher,
# for MAX_UPDATE updates: what the chain has to beat. MAX_UPDATE (5000), ALPHA, LR, SEED and others as in distill.sh.
# Finished links are skipped, and an interrupted one is resumed; settings must not change.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "${0##*/}: $*" >&2; exit 1; }
[ $# -ge 4 ] || { echo "usage: ${0##*/} DATA_BIN TEACHER OUT SIZE [SIZE …]" >&2; exit 2; }
data=$1 teacher=$2 out=$3
shift 3
sizes=("$@")
MAX_UPDATE=${MAX_UPDATE:-5000} DIRECT=${DIRECT:-1}
IFS=, read -r -a shares <<<"${SHARES:-}"
[ ${#shares[@]} -gt 0 ] || for _ in "${sizes[@]}"; do shares+=(1); done
[ ${#shares[@]} = ${#sizes[@]} ] || die "SHARES=$SHARES names ${#shares[@]} shares for ${#sizes[@]} sizes"
whole=0
for share in "${shares[@]}"; do
    [[ $share =~ ^[1-9][0-9]*$ ]] || die "SHARES=$SHARES: $share is not a whole number above 0"
    whole=$((whole + share))
done
for size in "${sizes[@]}"; do
    [[ $size =~ ^[1-9][0-9]*(,[1-9][0-9]*){4}$ ]] || die "$size: a size is ENCODER_LAYERS,DECODER_LAYERS,DIM,FFN,HEADS"
done
[[ $MAX_UPDATE =~ ^[0-9]+$ ]] && [ "$MAX_UPDATE" -ge "$whole" ] || die "MAX_UPDATE=$MAX_UPDATE leaves a link without an update"
mkdir -p "$out"

# link NAME TEACHER SIZE UPDATES: trains one, unless it is finished.
link() {
    local name=$1 by=$2 updates=$4 sizes saved
    IFS=, read -r -a sizes <<<"$3"
    local told="$by $3 $updates ${ALPHA:-} ${TEMPERATURE:-} ${LR:-} ${WARMUP:-} ${SEED:-} ${MAX_TOKENS:-}"
    saved=$(cat "$out/$name.settings" 2>/dev/null || true)
    if [ -n "$saved" ] && [ "$saved" != "$told" ]; then
        die "$out/$name was begun with other settings ($saved): name another OUT"
    fi
    printf '%s\n' "$told" >"$out/$name.settings"
    if [ -f "$out/$name/averaged.pt" ]; then
        echo "$name: done before"
        return
    fi
    echo "$name: $3, $updates updates, taught by $by"
    env ENCODER_LAYERS="${sizes[0]}" DECODER_LAYERS="${sizes[1]}" DIM="${sizes[2]}" FFN="${sizes[3]}" HEADS="${sizes[4]}" \
        AVERAGE="${AVERAGE:-4}" SAVE_INTERVAL_UPDATES=$(((updates + 19) / 20)) \
        bash "$here/distill.sh" "$data" "$by" "$out/$name" --max-update "$updates" --max-epoch 100000
}

by=$teacher made=0 share=0
for ((number = 0; number < ${#sizes[@]}; number++)); do
    share=$((share + shares[number]))
    updates=$((MAX_UPDATE * share / whole - made))
    made=$((made + updates))
    link "link$((number + 1))" "$by" "${sizes[number]}" "$updates"
    by=$out/link$((number + 1))/averaged.pt
done
[ "$DIRECT" = 0 ] || link direct "$teacher" "${sizes[${#sizes[@]} - 1]}" "$MAX_UPDATE"
echo "compare them: kd-plugin evaluate --model chain=$by --model direct=$out/direct/averaged.pt …"
