#!/usr/bin/env bash
# Table 1 on two nodes of eight GPUs: a Ray cluster on Slurm's nodes, in which the reproduction then trains.
# An example: not run here, where there is no Slurm. The repository and $SAW_RUNS must be on a disk that all nodes see.
#
#   sbatch recipes/toolrl/slurm.sh --source /data/rlla_rl.json --model 3b --seeds 1,2,3
#
#SBATCH --job-name=saw-table1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=72:00:00
#SBATCH --requeue
# --requeue: a job that is stopped starts again, and goes on from its last checkpoints.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the repository}"
gpus=8
port=6379
venv=$(realpath -m "${SAW_VENV:-.venv}")
bash scripts/setup.sh --bfcl

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
# Ray asks for a token; an explicit address never looks for one by itself (ray 2.60).
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
start() { srun --overlap --nodes=1 --ntasks=1 -w "$1" "$venv/bin/ray" start --block --num-gpus "$gpus" "${@:2}" & }

start "$head" --head --node-ip-address "$address" --port "$port"
sleep 20
for node in "${nodes[@]:1}"; do start "$node" --address "$address:$port"; done
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
sleep 20

export RAY_ADDRESS=$address:$port SAW_PLATFORM=gpu
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
  bash scripts/reproduce_table1.sh --gpus "$gpus" --nodes "${#nodes[@]}" "$@"
