#!/bin/sh
# Create the Python environment, or leave an existing one unchanged: launch/make_env.sh VENV EXTRA...
#
# An environment that this script did not create is never modified. One that it created is updated
# whenever setup.cfg or the constraints have changed. PYTHON chooses the interpreter, CONSTRAINTS the file of
# pinned versions (empty: whatever pip selects, for your own torch).
set -eu
venv=$1
shift
made="$venv/.made-by-gkt_mpi"
if [ -d "$venv" ] && [ ! -e "$made" ]; then
    if [ ! -x "$venv/bin/python" ]; then
        echo "gkt_mpi: $venv is not a Python environment; delete it, or choose another with VENV=..." >&2
        exit 2
    fi
    "$venv/bin/python" - "$venv" "$@" <<'END'
import importlib.util, sys

venv, *extras = sys.argv[1:]
needed = "torch torchvision numpy h5py mpi4py yaml jsonargparse rich tensorboard".split()
needed += "jinja2 matplotlib pandas".split() if "report" in extras else []
needed += "hypothesis mypy onnx onnxruntime onnxscript pytest pytest_timeout ruff safetensors sklearn".split() if "dev" in extras else []
needed += "material mkdocs mkdocstrings".split() if "docs" in extras else []
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    print(f"gkt_mpi: {venv} lacks {', '.join(missing)}; install them, or let make create a new one: VENV=NEW", file=sys.stderr)
    sys.exit(2)
END
    exit 0
fi
constraints=${CONSTRAINTS-constraints.txt}
wanted=$(cat setup.cfg pyproject.toml ${constraints:+"$constraints"} | cksum)
missing=
for extra in "$@"; do
    [ "$(cat "$made-$extra" 2>/dev/null)" = "$wanted" ] || missing="$missing$extra,"
done
[ -n "$missing" ] || exit 0

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "gkt_mpi needs Python 3.11 or later, but $python is $("$python" -V 2>&1); try: make PYTHON=python3.11 ..." >&2
    exit 2
fi
echo "setting up $venv with $("$python" -V): once, about a minute plus downloads"
mkdir -p "$venv"
touch "$made" # first, so that an interrupted setup is continued later
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
# Without a terminal pip's log of every file is useless; errors are shown in any case.
[ -t 1 ] && quiet= || quiet=--quiet
# Compiling every module of every package takes longer than unpacking them: only imported ones are compiled, below.
"$venv/bin/python" -m pip install --disable-pip-version-check $quiet --no-compile \
    ${constraints:+-c "$constraints"} -e ".[${missing%,}]"
# Containers often disable Python's bytecode cache; each rank would then compile torch again, for three seconds.
PYTHONDONTWRITEBYTECODE='' "$venv/bin/python" -c '
import contextlib, importlib
import gkt_mpi.program, torch.utils.tensorboard
from gkt_mpi.torchvision_import import import_torchvision
import_torchvision("datasets")
for name in ("gkt_mpi.report.page", "pytest", "hypothesis", "xdist", "sklearn.datasets"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
'
for extra in "$@"; do
    echo "$wanted" >"$made-$extra"
done
