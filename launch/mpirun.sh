#!/bin/sh
# mpirun with the flags this machine needs: launch/mpirun.sh -np 5 python -m gkt_mpi.main --config ...
#
# With Open MPI: more ranks than cores are allowed, ranks are not bound to cores (server and workers
# alternate, and bound ranks would leave cores idle), and root may run it, as in a container. From version 5 on the
# job survives lost workers (disable with --with-ft no). Intel MPI does not bind ranks either. Other MPIs get no flags.
# VENV's programs come first on the path; MPIRUN selects the launcher.
#
# Signals: on SIGTERM and Ctrl-C mpirun kills its ranks, but it forwards SIGUSR1. This script therefore catches them and
# sends SIGUSR1: the run saves its state and exits with status 75. A second signal kills it.
set -eu
early='echo "gkt_mpi: interrupted before the run began; start the same command again" >&2; exit 75'
trap "$early" TERM INT HUP USR1

# With too few file descriptors Open MPI exits with status 186 and no message; on one machine it needs about four per rank.
hosts= ranks= previous=
[ "${SLURM_JOB_NUM_NODES:-1}" = 1 ] || hosts=64
for word in "$@"; do
    case $previous:$word in
    *:--host* | *:-host* | *:-H) hosts=64 ;;
    *:-np=* | *:--np=* | *:-n=* | *:--n=*) previous=-n word=${word#*=} ;;
    esac
    case $previous:$word in
    -np:[1-9]* | --np:[1-9]* | -n:[1-9]* | --n:[1-9]*) ranks=${ranks:-${word%%[!0-9]*}} ;;
    esac
    previous=$word
done
files=${hosts:-$((32 + 4 * ${ranks:-1}))}
limit=$(ulimit -n)
if [ "$limit" != unlimited ] && [ "$limit" -lt "$files" ] && ! ulimit -Sn "$files" 2>/dev/null; then
    echo "gkt_mpi: this job may open $limit files at once, and mpirun needs $files; try: ulimit -n $files" >&2
    exit 2
fi
if [ -n "${VENV:-}" ] && [ -d "$VENV/bin" ]; then
    PATH="$(cd "$VENV/bin" && pwd):$PATH"
    export PATH
fi
launcher=${MPIRUN:-mpirun}
if ! command -v "$launcher" >/dev/null; then
    echo "gkt_mpi: there is no $launcher; install an MPI, or its wheel, in the project's folder, with: pip install -e '.[mpi]'" >&2
    exit 2
fi
version=$("$launcher" --version 2>&1)
case $version in
*"Open MPI"* | *prterun* | *OpenRTE*)
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    case " $* " in
    *" --bind-to "*) ;;
    *) set -- --bind-to none "$@" ;;
    esac
    case "$version $*" in
    *" --with-ft "* | *"Open MPI) "[1-4].*) ;;
    *) set -- --with-ft ulfm "$@" ;;
    esac
    set -- --oversubscribe "$@"
    case "$(command -v "$launcher") $*" in
    *" "*/mpirun*" --host"*) echo "gkt_mpi: Open MPI cannot start ranks on other nodes from a folder with a space in its name" >&2 ;;
    esac
    ;;
*"Intel(R) MPI"*)
    # Its mpirun is a script that dies of SIGUSR1 and leaves the run alone; it sets this much and starts mpiexec.hydra.
    launcher=$(dirname "$(command -v "$launcher")")/mpiexec.hydra
    export I_MPI_PIN="${I_MPI_PIN:-off}"
    [ -z "${SLURM_JOB_ID:-}" ] || export I_MPI_HYDRA_BOOTSTRAP="${I_MPI_HYDRA_BOOTSTRAP:-slurm}"
    [ -z "${PBS_ENVIRONMENT:-}" ] || export I_MPI_HYDRA_RMK="${I_MPI_HYDRA_RMK:-pbs}"
    [ -z "${LSB_JOBID:-}" ] || export I_MPI_HYDRA_RMK="${I_MPI_HYDRA_RMK:-lsf}"
    ;;
esac

# The server reports how it ended in a file: mpirun's own status is 0 if fault tolerance is on and a rank was killed. A
# server on another machine reports nothing, and mpirun's status is used.
if told=$(mktemp 2>/dev/null); then
    trap 'rm -f "$told"' EXIT
    export GKT_MPI_STATUS_FILE="$(uname -n):$told"
fi

# A launcher that does not even start the server is ended: after a minute, or five where it has several nodes to reach. With
# host options the server may be on another machine, and nothing is known of it.
deadline=
case " $* " in
*" --host"* | *" -H "* | *" --machinefile "*) ;;
*" gkt_mpi.main "*)
    if [ "${SLURM_JOB_NUM_NODES:-1}" = 1 ]; then deadline=${GKT_MPI_START_S:-60}; else deadline=${GKT_MPI_START_S:-300}; fi
    ;;
esac

# In its own session the launcher does not receive the terminal's Ctrl-C; if this script is killed, it receives SIGTERM.
set -- "$launcher" "$@"
setpriv --pdeathsig TERM true 2>/dev/null && set -- setpriv --pdeathsig TERM "$@"
command -v setsid >/dev/null && set -- setsid "$@"
"$@" &
job=$!
asked_to_end=
trap 'asked_to_end=1; kill -USR1 $job; trap "asked_to_end=; kill -TERM $job" TERM INT HUP USR1' TERM INT HUP USR1
trap 'kill -USR2 $job' USR2 # every rank prints its stack
trap 'kill -TSTP $job; kill -STOP $$; kill -CONT $job' TSTP # Ctrl-Z suspends the whole job, until fg
starting=
if [ -n "$deadline" ] && [ -n "$told" ] && setpriv --pdeathsig KILL true 2>/dev/null; then
    (
        # A launcher that ends at once can leave this sleep behind: it must not keep anybody's pipe open.
        setpriv --pdeathsig KILL sleep "$deadline" >/dev/null 2>&1 || exit 0
        [ -s "$told" ] && exit 0
        echo "gkt_mpi: $launcher has not started the server within $deadline s; see --check, or set GKT_MPI_START_S" >&2
        kill -TERM $job 2>/dev/null && sleep 5 && kill -KILL $job 2>/dev/null
    ) &
    starting=$!
fi
status=0
wait $job || status=$?
while kill -0 $job 2>/dev/null; do # a signal ends wait, not the job
    status=0
    wait $job || status=$?
done
[ -z "$starting" ] || kill $starting 2>/dev/null || true
ended=$(cat "$told" 2>/dev/null) || ended=
case $ended:$status:$asked_to_end in
began:*:1 | :*:1) # the server could not handle the signal yet
    eval "$early"
    ;;
began:0:)
    status=1
    echo "gkt_mpi: the server was killed; start the same command again to resume" >&2
    ;;
began:9: | began:137: | began:255:) # MPICH, Open MPI, Intel MPI
    status=1
    echo "gkt_mpi: a rank was killed; start the same command again to resume" >&2
    ;;
[0-9]*:0:* | 75:*) status=$ended ;;
esac
exit $status
