#!/bin/bash
# What the batch scripts run: bash launch/slurm_job.sh CONFIG [--field value]...
#
# Run; forward Slurm's warning; wait until the state is saved; requeue the job, which resumes, until the run is complete.
# CONFIG is a YAML file or the name of one in launch/configs. The run folder is OUT/NAME: NAME is otherwise the job's name if
# sbatch was given one, or the configuration's. An array task uses its index as the seed.
set -eu
launch=$(dirname "$0")

refuse() {
    echo "slurm_job.sh: $1" >&2
    exit 2
}

for config in "${1:-}" "$launch/configs/${1:-}.yaml" "$launch"/configs/*/"${1:-}.yaml"; do
    [ ! -f "$config" ] || break
done
[ -f "$config" ] || refuse "there is no configuration '${1:-}'; expected a YAML file or a name, as in: sbatch launch/fedgkt.sbatch cifar10"
shift
for argument in "$@"; do
    case $argument in
    --name | --name=*) refuse "choose the run folder by sbatch --job-name=..., not by $argument" ;;
    --out | --out=*) refuse "choose the folder of run folders by OUT=... sbatch ..., not by $argument" ;;
    esac
done
[ -z "${!SLURM_GPUS_PER_TASK*}" ] ||
    refuse "with --gpus-per-task a rank does not see all GPUs of its node; use --gpus-per-node, and ranks share them"
VENV=${VENV-.venv}
export VENV
[ -z "$VENV" ] || [ -x "$VENV/bin/python" ] ||
    refuse "there is no Python environment $VENV; run make env once, or set VENV in the batch script"

ranks=${SLURM_NTASKS:-1} nodes=${SLURM_JOB_NUM_NODES:-1}
if [ -n "${SLURM_HET_SIZE:-}" ]; then # Slurm's variables describe the first component, and a step starts only there
    [ "$SLURM_HET_SIZE:$nodes" = 2:1 ] || refuse "a heterogeneous job is the server's node : the workers' nodes; this one has \
$SLURM_HET_SIZE components, the first with $nodes node(s)"
    ranks=$((ranks + SLURM_NTASKS_HET_GROUP_1)) nodes=$((nodes + SLURM_JOB_NUM_NODES_HET_GROUP_1))
    export SLURM_JOB_NUM_NODES=$nodes
    export SLURM_NODELIST=$SLURM_JOB_NODELIST,$SLURM_JOB_NODELIST_HET_GROUP_1
    export SLURM_TASKS_PER_NODE=$SLURM_TASKS_PER_NODE,$SLURM_TASKS_PER_NODE_HET_GROUP_1
    export SLURM_JOB_CPUS_PER_NODE=$SLURM_JOB_CPUS_PER_NODE,$SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1
    unset SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU # --check looks at each node's own limit instead
fi
[ "$ranks" -ge 2 ] || refuse "a server and a worker need at least two ranks, but this job has $ranks; try: sbatch --ntasks=21 ..."
[ "$ranks" -ge "$nodes" ] || refuse "$ranks ranks do not fill $nodes nodes; try: sbatch --nodes=1 ..., or more --ntasks"

case ${LAUNCHER:-mpirun}:${SLURM_HET_SIZE:-} in
mpirun:) flags=(-n "$ranks") ;;
mpirun:2) flags=(-n "$ranks" --prtemca plm_slurm_args "${PRTE_MCA_plm_slurm_args:-} --het-group=1") ;;
srun:) flags=(-n "$ranks") ;;
srun:2) flags=(--het-group=0,1) ;;
*) refuse "LAUNCHER is '$LAUNCHER'; expected mpirun or srun" ;;
esac
if [ "${LAUNCHER:-}" = srun ]; then
    flags+=(--mpi=pmix --cpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
    said=$(srun "${flags[@]}" true 2>&1) || refuse "this Slurm cannot start ranks by srun --mpi=pmix \
($(grep -m 1 error <<<"$said")); without LAUNCHER=srun mpirun starts them"
    # shellcheck disable=SC2206 - several words
    flags+=(${SRUNFLAGS:-})
    export MPIRUN=srun
fi

name=$(basename "$config" .yaml) out=${OUT:-runs}
[ "${SLURM_JOB_NAME:-fedgkt}" = fedgkt ] || name=$SLURM_JOB_NAME
name=${NAME:-$name}
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    name=$name-seed$SLURM_ARRAY_TASK_ID
    set -- "$@" --seed "$SLURM_ARRAY_TASK_ID"
fi
echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $ranks ranks on $nodes node(s) ${SLURM_NODELIST:-}, run folder $out/$name"

checkpoints() { ls "$out/$name/checkpoints" 2>/dev/null || true; }

before=$(checkpoints)
# shellcheck disable=SC2086 - several words
sh "$launch/mpirun.sh" "${flags[@]}" ${CONTAINER:-} \
    python -m gkt_mpi.main --config "$config" --name "$name" --out "$out" "$@" &
run=$!
ended=
trap 'echo "the time limit is near: the run saves its state"; kill -USR1 $run' USR1
trap 'ended=yes; kill -TERM $run' TERM # scancel, or a preemption, after which Slurm requeues the job itself
status=0
wait $run || status=$?
while kill -0 $run 2>/dev/null; do # a signal ends wait, not the run
    status=0
    wait $run || status=$?
done

if [ $status = 75 ] && [ -z "$ended" ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && [ "$before" = "$(checkpoints)" ]; then
        echo "slurm_job.sh: not requeued, because no round was completed; give the job more --time" >&2
    else
        echo "requeued, to resume from the newest checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    fi
elif [ "${LAUNCHER:-}" = srun ] && [ $status -gt 2 ] && [ -z "$ended" ]; then
    echo "slurm_job.sh: a rank was lost, and srun has ended the others; submit the job again to resume" >&2
fi
exit $status
