#!/bin/bash
# Train one network on several GPUs, of one machine or of many, by SLURM: one task for each GPU. Copy and edit.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 pipelines/train_slurm.sh study.yaml run budget=8h
#
# All tasks read the run folder: it lies on a disk that all machines share. A job that is killed or requeued goes on
# after its last whole epoch. The batch is shared out: train.batch_size is that of all tasks together.
#SBATCH --job-name=medseg-train
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -eu

if [ $# -lt 2 ]; then
    echo "usage: sbatch $0 CONFIG RUN [key=value ...]" >&2
    exit 2
fi
config=$1 run=$2
shift 2

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# A task that fails ends the others, which would wait for it.
srun --kill-on-bad-exit=1 medseg train "$config" "$@" --output "$run" --resume
