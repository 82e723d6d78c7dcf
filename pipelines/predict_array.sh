#!/bin/bash
# Segment a folder of scans by a SLURM job array: each task takes its share, all write into one folder. Copy and edit.
#
#   sbatch --array=1-8 pipelines/predict_array.sh scans run masks
#
# A task that is killed or requeued goes on where it was. The last to end joins the ledgers into masks/cases.csv; after
# a task that did not come back, `medseg merge masks` does.
#SBATCH --job-name=medseg-predict
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
##SBATCH --gpus-per-task=1
set -eu

if [ $# -ne 3 ]; then
    echo "usage: sbatch --array=1-N $0 SCANS MODEL MASKS" >&2
    exit 2
fi

# To repeat some tasks of eight: SHARDS=8 sbatch --array=3,5 pipelines/predict_array.sh scans run masks
shards=${SHARDS:-${SLURM_ARRAY_TASK_COUNT:-1}}
medseg predict "$1" --model "$2" --output "$3" --shard "${SLURM_ARRAY_TASK_ID:-1}/$shards"
