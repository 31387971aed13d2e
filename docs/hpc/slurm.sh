#!/usr/bin/env bash
# Reads a dataset on a Slurm cluster: an array of shards, then one job for the group table.
#
#   docs/hpc/slurm.sh IMAGE.sif BIDS_DIR OUTPUT_DIR [flags of bids_cmb]
#
# Environment: SHARDS (default 8), SBATCH_ARGS (e.g. "--partition=gpu --gres=gpu:1 --time=08:00:00").
# Submit it again after a failure, a time limit or a node that died: what is done is kept.
# For one shard alone: TASKS=3 docs/hpc/slurm.sh ... (the number of SHARDS must stay the same).
#SBATCH --job-name=bids_cmb
#SBATCH --cpus-per-task=2
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ] || [ "${1:-}" != --job ]; then # on the login node
  image=$(realpath "$1") data=$(realpath "$2") out=$(realpath -m "$3")
  shift 3
  shards=${SHARDS:-8}
  read -r -a args <<<"${SBATCH_ARGS:-}"
  mkdir -p "$out/logs/slurm"
  array=$(sbatch --parsable --array="${TASKS:-1-$shards}" --output="$out/logs/slurm/%A_%a.txt" \
    "${args[@]}" "$0" --job participant "$shards" "$image" "$data" "$out" "$@")
  # afterany: a scan that failed is a row of the table, with its reason.
  group=$(sbatch --parsable --dependency="afterany:$array" --output="$out/logs/slurm/%A_group.txt" \
    "${args[@]}" "$0" --job group 1 "$image" "$data" "$out")
  echo "submitted: array $array of $shards shards, then group $group; logs in $out/logs/slurm"
  exit
fi

level=$2 shards=$3 image=$4 data=$5 out=$6
shift 6
flags=()
# Said outright: a task that is submitted again alone would take the array for one of its size.
[ "$level" = participant ] && flags=(--shard "$SLURM_ARRAY_TASK_ID/$shards" --n-cpus "${SLURM_CPUS_PER_TASK:-2}")
# Memory of this job, of which a container knows nothing.
[ -n "${SLURM_MEM_PER_NODE:-}" ] && flags+=(--mem-mb "$SLURM_MEM_PER_NODE")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
apptainer run --nv --cleanenv --containall \
  --bind "$data:/data:ro" --bind "$out:/out" --bind "$work:/work" \
  "$image" /data /out "$level" -w /work "${flags[@]}" "$@"
