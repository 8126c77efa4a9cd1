#!/usr/bin/env bash
# The experiments of docs/lab-log.md, one arm each, on the development split: `make experiments`.
# A finished one is not repeated. OUT holds their folders and results.jsonl. Committed so far are the
# results of some of them (docs/experiments.jsonl).
set -euo pipefail
OUT=${OUT:-runs/experiments}
TGALIGN=${TGALIGN:-tgalign}
run() { "$TGALIGN" lab experiment "$@" --out "$OUT" > /dev/null; }
# Both shorter than the demo, to keep the list within two hours. The older ones saw fewer pictures.
SHORT="--set stage1.steps=600 --set stage2.steps=350"
OLD="--set stage1.steps=800 --set stage2.steps=450 --set data.pictures=8000"
LIGHT="--set objective.weight=0.4"  # what the guide weighed at first

# 1. What the pieces do where toxic pictures are described plainly.
run ce             --condition captioned $OLD
run ce_gate        --condition captioned $OLD
run tga_plain      --condition captioned $OLD $LIGHT
run tga            --condition captioned --conflict $OLD --set companions=0.25 $LIGHT
run tga            --condition captioned --toxic-share 0.01 $OLD --set companions=0.25 $LIGHT
# 2. The same with few toxic pictures, and with none.
run tga            --condition captioned --toxic-share 0.01 $SHORT $LIGHT
run tga_gate       --condition captioned --toxic-share 0.01 $SHORT
run tga            --condition absent $SHORT
# 3. More distinct pictures in the same steps, fewer companions, another weight.
run ce             --condition guided $SHORT --set data.pictures=8000
run ce             --condition guided $SHORT
run tga            --condition guided $SHORT --set data.pictures=8000 --set companions=0.25 $LIGHT
run tga            --condition guided $SHORT --set companions=0.25 $LIGHT
run tga            --condition guided $SHORT --set data.pictures=8000 $LIGHT
run tga            --condition guided $SHORT $LIGHT
run tga            --condition guided $SHORT
run tga            --condition guided $SHORT --set data.pictures=8000 --set companions=0.25 --set objective.weight=0.2
# 4. The paper's form against ours, without gate and companions.
run paper          --condition guided --conflict $SHORT
run tga_plain      --condition guided $SHORT
# 5. Does R matter?
run tga_plain      --condition guided $SHORT --set data.retrieved=none
run tga_plain      --condition guided $SHORT --set data.retrieved=random
# 6. Is cross-entropy alone given the best rates?
run ce             --condition guided $SHORT --set stage2.llm_lr=2.0e-4
run ce             --condition guided $SHORT --set stage2.llm_lr=1.5e-3
run ce             --condition guided $SHORT --set stage.projector_lr=1.0e-3
run tga            --condition guided $SHORT --set stage2.llm_lr=2.0e-4
