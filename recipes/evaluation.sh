#!/bin/sh
# Ask the arms of a finished demo everything, seed by seed, and put them side by side.
# From the root of the repository:  recipes/evaluation.sh demo3 evaluation
set -eu
TGALIGN="${TGALIGN:-tgalign}"
DEMO="${1:?the folder of a finished tgalign demo}"
OUT="${2:?where the evaluations go}"
shift 2
for arm in ${ARMS:-ce paper tga}; do
    folders=
    for seed in "$DEMO"/seed*; do
        folder="$OUT/$arm-${seed##*seed}"
        "$TGALIGN" evaluate "$seed/$arm/checkpoint" --out "$folder" \
            --suite lab --suite lab_icons --condition all --seed "${seed##*seed}"
        folders="$folders,$folder"
    done
    set -- "$@" "$arm=${folders#,}"
done
"$TGALIGN" pool "$@" --out "$OUT/table"
