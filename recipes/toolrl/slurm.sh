#!/usr/bin/env bash
# Table 1 on two nodes of eight GPUs: starts a Ray cluster on Slurm's nodes and trains on it.
# An example that was not run, because there is no Slurm here (tests/unit/repository/test_slurm.py runs it with stand-ins).
# What the nodes must share, and which variables reach them: docs/clusters.md.
#
#   sbatch recipes/toolrl/slurm.sh --source /data/rlla_rl.json --model 3b --seeds 1,2,3
#
# Environment:
#   SAW_HEAD_ADDRESS  address of the first node for the others (what they resolve its name to)
#   SAW_JOIN_LIMIT    seconds within which all nodes must join (300)
#
#SBATCH --job-name=saw-table1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=72:00:00
#SBATCH --requeue
# --requeue: a stopped job is restarted, and resumes from its last checkpoints.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the repository}"
gpus=8
port=6379
limit=${SAW_JOIN_LIMIT:-300}
export SAW_PLATFORM=gpu
source scripts/environment.sh
set_up_unless_dry "" "$@"
"$python" -m saw reproduce table1 --check-arguments "$@"  # before BFCL's environment is made
set_up_unless_dry --bfcl "$@"
die() { echo "slurm.sh: $1" >&2; exit 1; }
on=(srun --overlap --nodes=1 --ntasks=1 -w)  # no function: in the background, $! would not be srun itself

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# An address of the head that the others can reach: on the head itself its name may resolve to 127.0.1.1.
find_address() {
  local own known address
  own=$("${on[@]}" "$head" hostname --all-ip-addresses)  # without loopback
  known=$own
  if [ ${#nodes[@]} -gt 1 ]; then known=$("${on[@]}" "${nodes[1]}" getent ahostsv4 "$head" | awk '{print $1}') || true; fi
  for address in $known; do
    if [[ $address != *:* && " $own " == *" $address "* ]]; then echo "$address"; return; fi
  done
  die "${nodes[1]:-$head} knows $head under '${known//$'\n'/ }', and its addresses are '$own'; set SAW_HEAD_ADDRESS"
}
address=${SAW_HEAD_ADDRESS:-$(find_address)}

# Ray asks for a token; an explicit address never looks for one by itself (ray 2.60).
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

errors=$(mktemp)
trap 'rm -f "$errors"; kill $(jobs -p) 2> /dev/null || true; wait' EXIT
declare -A ray_on  # node -> the process that holds its Ray
start() {
  "${on[@]}" "$1" "$(dirname "$python")/ray" start --block --num-gpus "$gpus" "${@:2}" &
  ray_on[$1]=$!
}
stop_if_ray_ended() {
  local node
  for node in "${!ray_on[@]}"; do
    kill -0 "${ray_on[$node]}" 2> /dev/null || die "Ray on $node has ended; its output is above"
  done
}
joined() {
  timeout 60 "$python" -c 'import sys; from saw.machine.cluster import nodes_of_the_cluster as nodes
print(*(node.name.partition(".")[0] for node in nodes(sys.argv[1])))' "$address:$port" 2> "$errors"
}
wait_for() {
  local there node missing
  while true; do
    stop_if_ray_ended
    there=" $(joined || true) "
    missing=()
    for node in "$@"; do if [[ $there != *" ${node%%.*} "* ]]; then missing+=("$node"); fi; done
    if [ ${#missing[@]} = 0 ]; then return; fi
    if [ $((SECONDS - started)) -ge "$limit" ]; then
      die "not in the Ray cluster at $address:$port after $limit s (SAW_JOIN_LIMIT): ${missing[*]}; in it:$there. $(tail -n 1 "$errors")"
    fi
    sleep 1
  done
}

started=$SECONDS
start "$head" --head --node-ip-address "$address" --port "$port"
wait_for "$head"
for node in "${nodes[@]:1}"; do start "$node" --address "$address:$port"; done
wait_for "${nodes[@]}"

export RAY_ADDRESS=$address:$port
"${on[@]}" "$head" bash scripts/reproduce_table1.sh --gpus "$gpus" --nodes "${#nodes[@]}" "$@" &
training=$!
wait -n || true  # until the training ends, or Ray on one of the nodes
stop_if_ray_ended
wait "$training"
