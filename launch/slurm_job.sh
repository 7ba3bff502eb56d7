#!/bin/bash
# The common part of this folder's batch scripts: bash launch/slurm_job.sh CONFIG [--field value]...
#
# Run; forward Slurm's warning; wait until the state is saved; requeue the job, which resumes, until the run is complete.
# An array task uses its index as the seed. NAME and OUT set the run folder OUT/NAME.
set -eu
config=$1
shift

refuse() {
    echo "slurm_job.sh: $1" >&2
    exit 2
}

for argument in "$@"; do
    case $argument in
    --name | --name=* | --out | --out=*) refuse "choose the run folder by NAME=... OUT=... sbatch ..., not by $argument" ;;
    esac
done
ranks=${SLURM_NTASKS:-1} nodes=${SLURM_JOB_NUM_NODES:-1}
[ "$ranks" -ge 2 ] || refuse "a server and a worker need at least two ranks, but this job has $ranks; try: sbatch --ntasks=21 ..."
[ "$ranks" -ge "$nodes" ] || refuse "$ranks ranks do not fill $nodes nodes; try: sbatch --nodes=1 ..., or more --ntasks"
VENV=${VENV:-.venv}
export VENV
[ -x "$VENV/bin/python" ] || refuse "there is no Python environment $VENV; run make env once, or set VENV in the batch script"

name=${NAME:-$(basename "$config" .yaml)} out=${OUT:-runs}
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    name=$name-seed$SLURM_ARRAY_TASK_ID
    set -- "$@" --seed "$SLURM_ARRAY_TASK_ID"
fi
echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $ranks ranks on $nodes node(s) ${SLURM_JOB_NODELIST:-}, run folder $out/$name"

checkpoints() { ls "$out/$name/checkpoints" 2>/dev/null || true; }

before=$(checkpoints)
sh "$(dirname "$0")/mpirun.sh" -np "$ranks" python -m gkt_mpi.main --config "$config" --name "$name" --out "$out" "$@" &
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
fi
exit $status
