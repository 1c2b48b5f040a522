#!/usr/bin/env bash
# Take tables of docs/benchmarks again, one after another, on a machine that does nothing else.
#   scripts/tables.sh EVAL [NAME...]
# EVAL: a directory with one question.jsonl per task set, SET/question.jsonl. Without names: all that are listed
# here. A run that was stopped goes on from runs/NAME; remove that to begin anew. Afterwards: make docs.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 1; }
eval=$1
shift
sets="--task $eval/humaneval/question.jsonl --task $eval/gsm8k/question.jsonl --task $eval/mt_bench/question.jsonl"
chat="--task $eval/gsm8k/question.jsonl --task $eval/mt_bench/question.jsonl"
declare -A tables=(
  [pair]="-m jakiro -m eagle2 -m jakiro-59=jakiro@dynamic:11,10,59,0.2 $sets -T 0 -T 1 --limit 80 -n 128"
  [paper]="--suite paper --task $eval --heads heads --limit 10 -n 128"
  [ablation]="--suite ablation --task $eval --heads heads --limit 6 -n 128 --threads 1"
  [auto]="--suite auto $chat --limit 6 -n 96 --repetitions 2"
  [adversarial]="--suite adversarial --ignore-eos --batch 16 --limit 160 --repetitions 2 -n 48"
  [batch]="-m jakiro -m eagle2 --task gsm8k --limit 16 -n 96 -T 0 -T 1 --batch 1 --batch 2 --batch 4 --batch 8 --batch 16 --ignore-eos --repetitions 1"
  [methods]="--suite methods --task $eval --heads heads --limit 4 -n 64 --threads 1"
  [transformers]="-m none --transformers --task humaneval --task gsm8k --limit 10 --repetitions 2 -n 128"
  [others]="--suite others --task $eval --heads heads --foreign docs/benchmarks/vllm.json --limit 4 -n 128"
)
names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${!tables[@]}")
for name in "${names[@]}"; do
  [ -v "tables[$name]" ] || { echo "no table is called $name; known: ${!tables[*]}" >&2; exit 1; }
done
for name in "${names[@]}"; do
  # shellcheck disable=SC2086  options are words
  jakiro bench ${tables[$name]} --out "runs/$name"
  cp "runs/$name/report.json" "docs/benchmarks/$name.json"
done
