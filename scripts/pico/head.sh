#!/usr/bin/env bash
# Train one of the heads that the suites name: same data, steps and optimiser, one setting changed.
#   [STEPS=4000] [OPTIMIZER=adamw] [START=DIR] [SECOND=0.1] [UNROLL=3] scripts/pico/head.sh NAME TARGET OUT DATA...
# leaves it in OUT/NAME; with START it goes on from DIR/NAME; SECOND is the weight of a second branch,
# UNROLL how many levels deep it learns from its own predictions.
# Without arguments: the names and what each of them changes.
set -euo pipefail

steps=${STEPS:-4000}
common="--steps $steps --optimizer ${OPTIMIZER:-adamw} --batch-tokens 1024 --length 256 --warmup $((steps < 2000 ? steps / 10 : 200))"
layer="$common --unroll ${UNROLL:-3} --lr 3e-3 --noise 0.05 --token-weight 0.5 --second-branch ${SECOND:-0.1}"
# Experts share 704 columns (2 x 352), so mixtures of any size have the parameters of one expert of
# 704 (869 thousand) to 0.3 %; the widest single expert makes up for the gate as well. Streams of
# three lower layers are read by 197 thousand more.
declare -A heads=(
  [jakiro]="$layer --method jakiro --expert-size 352 --read 2 --read 8 --read 13"
  [jakiro_last]="$layer --method jakiro --expert-size 352"
  [eagle2]="$layer --method eagle2"
  [eagle2_wide]="$layer --method eagle2 --expert-size 705"
  [eagle1]="$layer --method eagle1"
  [eagle2_streams]="$layer --method eagle2 --read 2 --read 8 --read 13"
  [jakiro_decoupled]="$layer --method jakiro --expert-size 352 --branches decoupled"
  [jakiro_decoupled_best]="$layer --method jakiro --expert-size 352 --branches decoupled --expert-share best"
  [jakiro_decoupled_diverse]="$layer --method jakiro --expert-size 352 --branches decoupled --diversity 0.1"
  [jakiro_star]="$layer --method jakiro_star --expert-size 528"
  [jakiro_experts3]="$layer --method jakiro --expert-size 235 --num-experts 3"
  [jakiro_experts4]="$layer --method jakiro --expert-size 176 --num-experts 4"
  [jakiro_experts5]="$layer --method jakiro --expert-size 141 --num-experts 5"
  [jakiro_contrast0]="$layer --method jakiro --expert-size 352 --contrast-levels 0"
  [jakiro_contrast2]="$layer --method jakiro --expert-size 352 --contrast-levels 2"
  [medusa]="$common --method medusa --lr 2e-3 --tree-nodes 16"
  [kangaroo]="$common --method kangaroo --lr 3e-3 --layers 4"
  [draft_model]="$common --method draft_model --lr 2e-3 --layers 2"
  [specdec_pp]="$common --method specdec_pp --lr 2e-3 --draft-model ${3:-OUT}/draft_model"
)
if [ $# -lt 4 ]; then
  for name in "${!heads[@]}"; do echo "$name: ${heads[$name]}"; done | sort
  exit
fi
name=$1 target=$2 out=$3
shift 3
[ -v "heads[$name]" ] || { echo "no head is called $name; known: ${!heads[*]}" >&2; exit 1; }
# shellcheck disable=SC2086  options are words
exec jakiro train --target "$target" --out "$out/$name" ${heads[$name]} \
  ${START:+--start "$START/$name"} "${@/#/--data=}"
