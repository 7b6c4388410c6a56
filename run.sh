#!/usr/bin/env bash
# bash run.sh METHOD DATASET [--flags]: the first call creates the environment; then python -m distill is run.
# An activated environment with torch is used unchanged. Otherwise the environment is .venv beside this file, created
# from requirements.txt with uv if installed, else with venv and pip. PYTHON sets the interpreter for .venv.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { echo "run.sh: $1" >&2; exit "${2:-2}"; }

find_python() {  # prints an interpreter of version 3.11 or newer
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
            && { echo "$candidate"; return; }
    done
    fail "no Python 3.11 or newer on the path; install it, or set its path: PYTHON=/path/to/python bash run.sh ..."
}

install() {  # install FILE [FLAG]: install the packages of FILE into .venv, again only after FILE has changed
    local file=$1 stamp
    stamp="$here/.venv/.installed-$(cksum <"$here/$file" | tr ' ' '-')"
    [ -e "$stamp" ] && return
    echo "run.sh: installing $file into .venv, once (torch is large: this can take minutes)" >&2
    if command -v uv >/dev/null; then
        uv pip install --quiet --python "$here/.venv/bin/python" "${@:2}" -r "$here/$file" >&2 \
            || fail "uv could not install $file" 1
    else
        # no warning about torchattacks, whose requirements are deliberately not installed
        "$here/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-conflicts "${@:2}" \
            -r "$here/$file" >&2 \
            || fail "pip could not install $file (see the message above)" 1
    fi
    touch "$stamp"
}

lacks() {  # lacks NAME...: prints the modules that the activated environment does not have
    python - "$@" <<'PY'
import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))
PY
}

environment() {  # sets $python
    local needed="torchvision numpy sklearn scipy matplotlib kornia timm torchattacks tyro tqdm safetensors tensorboard" missing
    local files="requirements.txt, then pip install --no-deps -r requirements-no-deps.txt"
    if [ "${1:-}" = test ]; then
        needed="$needed pytest xdist"
        files="tests/fast.txt -r $files"
        if [ "${2:-}" != --fast ]; then
            needed="$needed ruff basedpyright zensical mkdocstrings_handlers latex2mathml"
            files="tests/requirements.txt -r docs/requirements.txt -r ${files#tests/fast.txt -r }"
        fi
    fi
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -z "$(lacks torch)" ]; then
        # shellcheck disable=SC2086  # $needed is split into words
        missing=$(lacks $needed)
        [ -z "$missing" ] || fail "the activated environment lacks $missing: pip install -r $files, or deactivate it"
        python=python
        return
    fi
    python="$here/.venv/bin/python"
    if [ ! -x "$python" ]; then
        echo "run.sh: creating the environment .venv" >&2
        if command -v uv >/dev/null; then
            uv venv --quiet --python '>=3.11' "$here/.venv" >&2 || fail "uv could not create .venv" 1
        else
            found=$(find_python)
            "$found" -m venv "$here/.venv" || fail "could not create .venv (on Debian: apt install python3-venv)" 1
        fi
    fi
    install requirements.txt
    install requirements-no-deps.txt --no-deps
    if [ "${1:-}" = test ]; then
        install tests/fast.txt
        if [ "${2:-}" != --fast ]; then
            install tests/requirements.txt
            install docs/requirements.txt
        fi
    fi
}

[ -d "$PWD" ] || fail "the current folder was deleted; change to another"
environment "$@"
# by default glibc returns large blocks to the system at once; page faults for new blocks cost a third of the CPU time
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-34359738368}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-34359738368}"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = test ]; then
    shift
    cd "$here"
    if [ "${1:-}" = --fast ]; then  # about two minutes on two cores; needs only pytest (pyproject.toml: markers)
        shift
        set -- -m "not slow and not long" "$@"
    fi
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)  # each worker imports torch: half a gigabyte
    exec "$python" -m pytest -n "$((cores < 4 ? cores : 4))" --dist worksteal "$@"
fi
if [ "${1:-}" = bench ]; then
    shift
    exec "$python" -m tests.bench "$@"
fi
exec "$python" -m distill "$@"
