#!/bin/sh
# mpirun with the flags this machine needs: launch/mpirun.sh -np 5 python -m gkt_mpi.main --config ...
#
# With Open MPI: more ranks than cores are allowed, ranks are not bound to cores (one server and its workers
# take turns, and bound ranks would leave cores idle), and root may run it, as in a container. Another MPI gets
# no flags. VENV's programs come first; MPIRUN chooses the launcher.
set -eu
if [ -n "${VENV:-}" ] && [ -d "$VENV/bin" ]; then
    PATH="$(cd "$VENV/bin" && pwd):$PATH"
    export PATH
fi
launcher=${MPIRUN:-mpirun}
if ! command -v "$launcher" >/dev/null; then
    echo "gkt_mpi: there is no $launcher; install an MPI, or its wheel with: pip install 'gkt_mpi[mpi]'" >&2
    exit 2
fi
case $("$launcher" --version 2>&1) in
*"Open MPI"* | *prterun* | *OpenRTE*)
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    case " $* " in
    *" --bind-to "*) exec "$launcher" --oversubscribe "$@" ;;
    esac
    exec "$launcher" --oversubscribe --bind-to none "$@"
    ;;
esac
exec "$launcher" "$@"
