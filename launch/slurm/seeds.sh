#!/usr/bin/env bash
# When: the same experiment over several seeds, one GPU each, as a job array; then rootstock report runs/NAME/seed-*.
# Command: sbatch --job-name=NAME launch/slurm/seeds.sh pretrain simclr.yaml data.train=folder:PATH
# Change: the seeds after --array=, partition, CPUs and time below. The same command again resumes the seeds that are not finished.
#SBATCH --job-name=seeds
#SBATCH --array=0-4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
set -euo pipefail

seed=$SLURM_ARRAY_TASK_ID
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" rootstock launch "$@" "seed=$seed" "run.dir=runs/$SLURM_JOB_NAME/seed-$seed"
