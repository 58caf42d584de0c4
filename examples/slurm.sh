#!/usr/bin/env bash
# Self-play on two hosts with eight GPUs each, one process per GPU, under Slurm:
#
#     sbatch examples/slurm.sh
#
# Every host needs the program and the plugin, at the same path. Rank 0 alone needs the model, the prompts and the
# directory of the run. A job that is started again goes on with the run.
#SBATCH --job-name=sppo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
export MASTER_ADDR MASTER_PORT=29500

# Slurm numbers the processes; sppo reads the names of torch.distributed.
srun bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec sppo run --resume-or-start --name mine --backend tch --oracle pairrm \
        --preset official --model mistralai/Mistral-7B-Instruct-v0.2 \
        --set backend.tch.data_type=bf16
'
