#!/usr/bin/env bash
# When: a job longer than the time limit, or one that may be preempted, on one node or several: it saves, is queued again and resumes.
# Command: sbatch launch/slurm/requeue.sh pretrain simclr.yaml data.train=folder:PATH
# Change: partition, nodes, GPUs, CPUs and time below; `most`; the seconds after USR1@, if a checkpoint takes longer to write.
#SBATCH --job-name=rootstock
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

most=50
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# A port for each job, since two jobs may share a node; below the range from which Linux assigns ports.
port=$((10000 + SLURM_JOB_ID % 20000))

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    rootstock launch --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$first:$port" "$@" &
step=$!
# SLURM sends USR1 before the time limit to this shell only; TERM may come too, and must not end it before the step has saved.
trap 'kill -USR1 "$step" 2>/dev/null || true' USR1 TERM

# A signal ends `wait` before the step has ended.
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true
done
code=0
wait "$step" || code=$?

case $code in
130 | 138 | 143) ;; # saved and stopped; or ended by USR1 or TERM itself, before there was anything to save
*) exit "$code" ;;
esac
# If the job is not RUNNING any more, SLURM requeues it itself (PreemptMode=REQUEUE without grace), or someone has cancelled it.
if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) != RUNNING ]]; then
    exit "$code"
fi
if ((${SLURM_RESTART_COUNT:-0} >= most)); then
    echo "requeued $most times already; submit it again to go on, or raise most" >&2
    exit "$code"
fi
scontrol requeue "$SLURM_JOB_ID"
