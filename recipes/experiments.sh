#!/usr/bin/env bash
# The experiments of docs/lab-log.md, one arm each, on the development split: `make experiments`.
# A finished one is not repeated. OUT holds their folders and results.jsonl. Committed so far are the
# results of some of them (docs/experiments.jsonl).
set -euo pipefail
OUT=${OUT:-runs/experiments}
TGALIGN=${TGALIGN:-tgalign}
# Shorter than the demo, to keep the whole list within an hour and a half.
SHORT="--set stage1.steps=800 --set stage2.steps=450"
run() { "$TGALIGN" lab experiment "$@" $SHORT --out "$OUT" > /dev/null; }

# 1. What the pieces do where toxic pictures are described plainly.
run ce             --condition captioned
run ce_gate        --condition captioned
run tga_plain      --condition captioned
run tga            --condition captioned --conflict
# 2. The same with few toxic pictures, and with none.
run tga_gate       --condition captioned --toxic-share 0.01
run tga_companions --condition captioned --toxic-share 0.01
run tga            --condition captioned --toxic-share 0.01
run tga_plain      --condition absent
run tga            --condition absent
# 3. The paper's form against ours, without and with gate and companions.
run paper          --condition guided --conflict
run tga_plain      --condition guided
run tga            --condition guided
# 4. Does R matter?
run tga_plain      --condition guided --set data.retrieved=none
run tga_plain      --condition guided --set data.retrieved=random
# 5. Is cross-entropy alone given the best rates?
run ce             --condition guided
run ce             --condition guided --set stage2.llm_lr=2.0e-4
run ce             --condition guided --set stage2.llm_lr=1.5e-3
run ce             --condition guided --set stage.projector_lr=1.0e-3
run tga            --condition guided --set stage2.llm_lr=2.0e-4
# 6. How the effect grows with the number of pictures.
run tga            --condition guided --set data.pictures=1000
run tga            --condition guided --set data.pictures=3000
