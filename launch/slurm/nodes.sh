#!/usr/bin/env bash
# When: several nodes of a SLURM cluster, with one launcher each; run.dir must be on a disk that all of them share.
# Command: sbatch --nodes=4 launch/slurm/nodes.sh pretrain simclr.yaml data.train=folder:PATH
# Change: partition, nodes, GPUs, CPUs and time below; activate the environment first. Without GPUs, write --nproc N before the verb.
#SBATCH --job-name=rootstock
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# A port for each job, since two jobs may share a node; below the range from which Linux assigns ports.
port=$((10000 + SLURM_JOB_ID % 20000))

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    rootstock launch --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$first:$port" "$@"
