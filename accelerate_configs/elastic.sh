#!/bin/bash
# torchrun with elastic restarts: one machine, several, or a number that changes. Trains, saves on SIGTERM, and resumes.
#
# All arguments go to `sparse_accel train text-classification`, to the task in TRAIN_TASK, or to the script in TRAIN_SCRIPT:
#   accelerate_configs/elastic.sh --model_name_or_path MODEL --recipe RECIPE \
#     --distill_teacher TEACHER --task_name sst2 --output_dir outputs/run --do_train --do_eval
# Several machines: the same line on each, with the address of one of them. Data, model and --output_dir must be on a
# shared file system. NODES may be a range; then GLOBAL_BATCH keeps the run the same whatever number takes part:
#   NODES=1:4 MAIN_ADDRESS=ADDRESS GLOBAL_BATCH=64 accelerate_configs/elastic.sh ... --output_dir /shared/outputs/run
#
# In the environment:
#   PROCESSES        per machine (default: one per GPU). On CPUs, set a number and ACCELERATE_USE_CPU=true
#   NODES            machines (default: 1), or MIN:MAX; a machine that comes or goes restarts the processes of all
#   MAIN_ADDRESS     where the machines meet: name or address of one of them, the same on all; MAIN_PORT (29400) of it
#   MACHINE          number of this machine; 0 is that one (default: torchrun compares names and addresses)
#   ADDRESS          of this machine, as the others reach it (default: its full name)
#   RUN_ID           a name that the machines share, if several runs use one port (default: sparse_accel)
#   GLOBAL_BATCH     rows of all processes together; replaces --per_device_train_batch_size
#   WAIT             seconds to wait for the other machines (default: 900)
#   MOST_RESTARTS    of the processes when one dies (default: 3); with several machines, of torchrun too
#   AGAIN_EXIT_CODE  when stopped and saved: start this again (default: 75)
# Where a Kubernetes operator set torchrun's own variables (PET_NNODES, PET_MASTER_ADDR, ...), those are the defaults.
# Precision and compilation are flags (--bf16). FSDP and DeepSpeed need `accelerate launch` and a file of this folder.
#
# Exit codes: 0 done; 2 an error to fix, not worth a restart; 75 stopped, the same command resumes; 1 everything else.

set -euo pipefail
nodes="${NODES:-${PET_NNODES:-1}}"
processes="${PROCESSES:-${PET_NPROC_PER_NODE:-gpu}}"
main="${MAIN_ADDRESS:-${PET_MASTER_ADDR:-}}"
port="${MAIN_PORT:-${PET_MASTER_PORT:-29400}}"
machine="${MACHINE:-${PET_NODE_RANK:-}}"
most_restarts="${MOST_RESTARTS:-3}"
again="${AGAIN_EXIT_CODE:-75}"

if [[ -n "${TRAIN_SCRIPT:-}" ]]; then
  program=("$TRAIN_SCRIPT")
else
  program=(-m sparse_accel train "${TRAIN_TASK:-text-classification}")
fi

if [[ "$processes" == gpu ]] && ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "error: there is no GPU here. To train on CPUs: PROCESSES=NUMBER ACCELERATE_USE_CPU=true $0 ..." >&2
  exit 2
fi

launch=(python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes")
launch+=(--max-restarts "$most_restarts" --monitor-interval 1 --rdzv-backend c10d --rdzv-id "${RUN_ID:-sparse_accel}")
if [[ "$nodes" == 1 ]]; then
  main=""
  launch+=(--rdzv-endpoint localhost:0 --local-addr localhost)
elif [[ -n "$main" ]]; then
  meeting="join_timeout=${WAIT:-900},read_timeout=${WAIT:-900}"
  if [[ -n "$machine" ]]; then meeting+=",is_host=$([[ "$machine" == 0 ]] && echo true || echo false)"; fi
  launch+=(--rdzv-endpoint "$main:$port" --rdzv-conf "$meeting")
  if [[ -n "${ADDRESS:-}" ]]; then launch+=(--local-addr "$ADDRESS"); fi
else
  echo "error: NODES=$nodes needs MAIN_ADDRESS, the name or address of one of the machines" >&2
  exit 2
fi

# The seconds that processes have to save. An operator's variables must not reach torchrun a second time.
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-240}"
# By default all restarts share one store, where a process may read the address of one that has died, and wait for it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT
unset PET_NNODES PET_NPROC_PER_NODE PET_NODE_RANK PET_MASTER_ADDR PET_MASTER_PORT

# torchrun ends with 1 whatever its processes ended with, so each adds its exit code as a line to this file.
SPARSE_ACCEL_EXIT_CODES="$(mktemp)"
export SPARSE_ACCEL_EXIT_CODES
trap 'rm -f "$SPARSE_ACCEL_EXIT_CODES"' EXIT

# What each process is, started by torchrun: $0 is not used, the words are those of Python's command line.
# shellcheck disable=SC2016
process='
if grep -qx 2 "$SPARSE_ACCEL_EXIT_CODES"; then exit 2; fi # an error to fix: this restart would meet it again
if [[ -n "${GLOBAL_BATCH:-}" ]]; then
  if ((GLOBAL_BATCH % WORLD_SIZE != 0)); then
    if [[ "$RANK" == 0 ]]; then echo "error: GLOBAL_BATCH=$GLOBAL_BATCH cannot be split over $WORLD_SIZE processes" >&2; fi
    echo 2 >> "$SPARSE_ACCEL_EXIT_CODES"
    exit 2
  fi
  set -- "$@" --per_device_train_batch_size "$((GLOBAL_BATCH / WORLD_SIZE))"
fi
exec python "$@"
'

warned=""
running=""
# shellcheck disable=SC2329
pass_on() {
  if [[ -z "$warned" && -n "$running" ]]; then kill -TERM "$running" 2>/dev/null || true; fi
  warned=yes
}
trap pass_on TERM USR1
trap 'warned=yes again=130' INT # a terminal sends Ctrl-C to torchrun, too

# Runs a command until it has ended, also where a signal interrupts the wait. Sets `code`.
run() {
  "$@" &
  running=$!
  if [[ -n "$warned" ]]; then kill -TERM "$running" 2>/dev/null || true; fi
  code=0
  wait "$running" || code=$?
  while kill -0 "$running" 2>/dev/null; do
    code=0
    wait "$running" || code=$?
  done
  running=""
}

for ((restart = 0; ; restart++)); do
  run "${launch[@]}" --no-python bash -c "$process" process "${program[@]}" "$@"
  if [[ "$code" == 0 ]]; then exit 0; fi
  if grep -qx 2 "$SPARSE_ACCEL_EXIT_CODES"; then exit 2; fi
  if [[ -n "$warned" ]]; then exit "$again"; fi
  # The machine where all meet may be gone for a while, and this torchrun with it.
  if [[ -z "$main" ]] || ((restart >= most_restarts)); then break; fi
  echo "torchrun ended with exit code $code: it starts again in 10 seconds (restart $((restart + 1)) of $most_restarts)" >&2
  run sleep 10
  if [[ -n "$warned" ]]; then exit "$again"; fi
done
if [[ "$(tail -n 1 "$SPARSE_ACCEL_EXIT_CODES")" == 75 ]]; then exit "$again"; fi
exit "$code"
