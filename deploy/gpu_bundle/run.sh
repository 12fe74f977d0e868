#!/bin/sh
# Measure this machine's GPU with what install.sh has installed: run.sh --minutes 10 --out DIR; --help lists the rest.
home=${FUSELINE_GPU_HOME:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/fuseline-gpu}
if [ ! -f "$home/activate" ]; then
    echo "error: nothing to run is installed in $home; install.sh of part-1 comes first" >&2
    exit 2
fi
. "$home/activate"
exec "$FUSELINE_PYTHON" -m fuseline.benchmarks.gpu run "$@"
