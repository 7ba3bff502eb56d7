#!/bin/bash
# What the batch scripts of this folder have in common: bash launch/slurm_job.sh CONFIG [--field value]...
#
# Run; pass Slurm's warning on; wait until the state is saved; have the job queued again; so resume, until it is done.
# An array's task runs with its number as the seed. NAME and OUT choose the run folder OUT/NAME.
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
[ "$ranks" -ge 2 ] || refuse "a server and a worker are two ranks at least, but this job has $ranks; try: sbatch --ntasks=21 ..."
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
sh launch/mpirun.sh -np "$ranks" python -m gkt_mpi.main --config "$config" --name "$name" --out "$out" "$@" &
run=$!
ended=
trap 'echo "Slurm warns: the run saves its state"; kill -USR1 $run' USR1
trap 'ended=yes; kill -TERM $run' TERM # scancel, or a preemption, after which Slurm itself queues the job again
status=0
wait $run || status=$?
while kill -0 $run 2>/dev/null; do # a signal ends the waiting, not the run
    status=0
    wait $run || status=$?
done

if [ $status = 75 ] && [ -z "$ended" ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && [ "$before" = "$(checkpoints)" ]; then
        echo "slurm_job.sh: not queued again, since no round was done in all this time; give the job more --time" >&2
    else
        echo "queued again, to go on from the newest checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $status
