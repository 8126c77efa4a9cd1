#!/bin/sh
# Diagnose the arms of a finished demo, seed by seed, and put them side by side.
# From the root of the repository:  recipes/diagnosis.sh demo3 diagnosis
set -eu
TGALIGN="${TGALIGN:-tgalign}"
DEMO="${1:?the folder of a finished tgalign demo}"
OUT="${2:?where the diagnoses go}"
for arm in ${ARMS:-ce paper tga}; do
    for seed in "$DEMO"/seed*; do
        name="$arm-${seed##*seed}"
        "$TGALIGN" diagnose "$seed/$arm/checkpoint" --out "$OUT/$name" --batch-size 84
        set -- "$@" "$OUT/$name"
    done
done
shift 2
"$TGALIGN" report "$@" --out "$OUT/compared"
