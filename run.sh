#!/usr/bin/env bash
# The main job: install lorabel with its embedded encoder, train LoRA under the budget and full fine-tuning on the same data,
# evaluate both on the test split, print the comparison and write a report.
#
#   ./run.sh                                                  the bundled sample, minutes on two cores
#   ./run.sh my_texts.csv                                     your own table
#   ./run.sh ag_news --encoder roberta-base --recipe paper    the paper's experiment, where a model hub can be reached
#
# Arguments after the data are passed to both trainings. PYTHON and VENV choose the interpreter and the environment.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' run.sh
  exit 0
fi
source scripts/install.sh
install_lorabel "minilm"

data=sample
if [[ $# -gt 0 && $1 != -* ]]; then
  data=$1
  shift
fi
# A table is named as seen from where the script was called.
if [[ $called_from != "$PWD" && $data != /* && -e $called_from/$data ]]; then data=$called_from/$data; fi
name=$(basename "$data")
name=${name%%.*}
out=runs/$name
# Another table of the same name keeps its results.
if [[ -f $out/lora/config.yaml ]] && ! grep -qxF "  source: $data" "$out/lora/config.yaml"; then out=$out-$(printf %s "$data" | cksum | cut -d ' ' -f 1); fi
mkdir -p "$out"

# Full fine-tuning takes every setting but those of an adapter.
full_args=()
skip=0
before=
for word in "$@"; do
  if [[ $skip == 1 ]]; then skip=0; continue; fi
  if [[ $before == --set && $word == method.* ]]; then
    unset "full_args[$((${#full_args[@]} - 1))]"
    before=
    continue
  fi
  before=$word
  case $word in
    --method|--rank|--alpha|--targets|--layers|--dropout) skip=1 ;;
    --method=*|--rank=*|--alpha=*|--targets=*|--layers=*|--dropout=*|--rslora) ;;
    *) full_args+=("$word") ;;
  esac
done

# A run that was stopped goes on; a finished one is made again; with --overwrite both are.
words=" $* "
mode_of() {
  if [[ $words == *" --overwrite "* ]]; then return; fi
  if [[ -f $1/record.json ]]; then echo --overwrite
  elif [[ -d $1/checkpoints ]]; then echo --resume
  elif [[ -f $1/config.yaml ]]; then echo --overwrite
  fi
}

lorabel=$VENV/bin/lorabel
echo "== LoRA under the budget"
# shellcheck disable=SC2046
"$lorabel" train "$data" --out "$out/lora" --final $(mode_of "$out/lora") "$@"
echo
echo "== Full fine-tuning of the same encoder"
# shellcheck disable=SC2046
"$lorabel" train "$data" --out "$out/full" --final $(mode_of "$out/full") ${full_args[@]+"${full_args[@]}"} --method full
echo
echo "== Side by side"
"$lorabel" report "$out/lora" "$out/full" --out "$out/report.html"
