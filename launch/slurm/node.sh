#!/usr/bin/env bash
# When: one node of a SLURM cluster, and the job fits into its time limit; two minutes before the limit it saves and ends.
# Command: sbatch launch/slurm/node.sh pretrain simclr.yaml data.train=folder:PATH
# Change: partition, GPUs, CPUs and time below; activate the environment first. Without GPUs, write --nproc N before the verb.
#SBATCH --job-name=rootstock
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" rootstock launch "$@"
