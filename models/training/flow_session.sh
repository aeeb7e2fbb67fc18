#!/usr/bin/env bash
# Trains, scores and packs the flow-matching model and its adapters on a machine that is lent by the minute, whose
# commands may not last as long as the training does. Run it in the repository's root:
#
#   flow_session.sh SECONDS WAIT OUT
#
# The first call starts everything in a session of its own, to end within SECONDS; every call waits WAIT seconds at
# most, shows the log, and leaves in OUT what is there by then (at most eight files below 16 MB): the folder as it is
# (model.tar.*), adapters, judge of styles and scores (rest.tar), and the log. Where a machine was lost, unpack those
# over the repository and start again on the next with the seconds that are left.
#
# MODEL, ADAPTERS and JUDGE (a folder that holds the judge's files) are where results are written, in place by default: name
# other folders where a call brings the repository's files again, which would overwrite them.
#
# SHARE=0.3 says that so much of the flow stage was done before, elsewhere. PYTHON, GPUS and OPTIONS (of the commands)
# are for trying it out without a GPU.
set -uo pipefail
whole=${1:?seconds for everything} wait=${2:?seconds to wait} out=${3:?folder for what comes out}
root=$PWD work=$PWD/.cache/model/flow
python=${PYTHON:-python3} gpus=${GPUS:-2} options=${OPTIONS:-}
model=${MODEL:-models/kubediffusion-emoji-flow} adapters=${ADAPTERS:-models/kubediffusion-emoji-flow-adapters}
judge=${JUDGE:-models/judge}
after_flow=${AFTER_FLOW:-390} # seconds for the distil stage, adapters and scores
after_distil=${AFTER_DISTIL:-210}
mkdir -p "$work" "$out"
export HF_HUB_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false TORCHINDUCTOR_CACHE_DIR=$work/inductor HF_HUB_OFFLINE=1
log=$work/session.log

flow() { $python -m models.training.flow_train --work "$work" --out "$model" --judge "$judge" $options "$@"; }
adapt() { $python -m models.training.flow_adapters --work "$work" --model "$model" --out "$adapters" --judge "$judge" $options "$@"; }
gpu() { if [ "$gpus" -gt 0 ]; then echo "--device cuda:$(($1 % gpus))"; fi; }
together() { # all GPUs, or two processes of the CPU
  $python -m torch.distributed.run --standalone --nproc-per-node "$([ "$gpus" -gt 0 ] && echo "$gpus" || echo 2)" \
    -m models.training.flow_train --work "$work" --out "$model" --judge "$judge" $options "$@"
}

everything() { # what runs in a session of its own
  local began end trials=()
  began=$(date +%s) end=$(($(date +%s) + whole))
  echo "begins at $began, to end at $end"
  # Compiling takes a minute of the GPUs while the CPUs draw; a compiler that hangs or dies leaves training uncompiled.
  if [ "$gpus" -gt 0 ]; then
    for k in $(seq 0 $((gpus - 1))); do
      [ -e "$work/compiled-$k.json" ] && continue
      (timeout 200 $python -m models.training.flow_train --work "$work" --further "$model" --device "cuda:$k" --stages trial || echo "trial $k failed") &
      trials+=($!)
    done
  fi
  flow --device cpu --stages draw || return 1
  for trial in "${trials[@]}"; do wait "$trial"; done
  together --further "$model" --stages encode || return 1
  local flow_ends=$((end - after_flow)) distil_ends=$((end - after_distil))
  for try in 1 2; do
    together --further "$model" --stages flow,distil,export --flow-ends $flow_ends --distil-ends $distil_ends \
      --flow-share "${SHARE:-0}" && break
    echo "training died: once more, uncompiled, from its checkpoint"
    rm -f "$work"/compiled-*.json
  done
  [ -e "$work/distil-average.pt" ] || return 1
  touch "$work/distilled"
  local lora=$(($(date +%s) + ${LORA:-80}))
  (adapt $(gpu 1) --ends $lora line-drawing) & (adapt $(gpu 1) --ends $lora pixel-art) &
  (adapt $(gpu 0) --ends $lora hedgehog) & (adapt $(gpu 1) judge) &
  (flow $(gpu 0) --stages evaluate; touch "$work/scored") &
  wait
  (flow $(gpu 0) --stages edits) & (adapt $(gpu 1) scores) &
  wait
  touch "$work/done"
}

collect() { # what is there, whole or not
  if [ ! -e "$work/distilled" ] && [ -e "$work/flow.pt" ]; then
    flow --device cpu --further "$model" --stages export >>"$log" 2>&1
  fi
  tar cf - "$model" 2>/dev/null | split -b 15000000 -d - "$work/model.tar."
  tar cf "$work/rest.tar" --ignore-failed-read "$adapters" "$judge/styles.json" "$judge/styles.safetensors" "$work"/compiled-*.json 2>/dev/null
  cp "$work"/model.tar.* "$work/rest.tar" "$log" "$out/"
}

case ${INSIDE:-} in
  1) everything; touch "$work/idle"; exit ;;
esac
running() { [ -e "$work/pid" ] && [ ! -e "$work/idle" ] && kill -0 "$(cat "$work/pid")" 2>/dev/null; }
if ! running && [ ! -e "$work/done" ]; then
  rm -f "$work/idle"
  INSIDE=1 python3 - "$0" "$@" >"$work/pid" <<PYTHON
import subprocess, sys
log = open("$log", "ab")
process = subprocess.Popen(["bash", *sys.argv[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
print(process.pid)
PYTHON
fi
cd "$root" || exit
until=$(($(date +%s) + wait - 30)) scored=0
while [ "$(date +%s)" -lt "$until" ] && running; do
  sleep 5
  if [ -e "$work/scored" ] && [ $scored = 0 ]; then # the most of it: keep it while the rest is being made
    scored=1
    collect
  fi
done
collect
tail -c 9000 "$log"
ls -l "$out"
