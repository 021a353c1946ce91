#!/usr/bin/env bash
# Runs every check of a GPU, in under ten minutes: bash bench/gpu_check.sh OUT [PART ...]
# PYTHON names the interpreter, whose torch and Triton are used; see check.py for the rest.
set -euo pipefail
[ $# -gt 0 ] && case $1 in -*) ;; *) set -- "$(realpath -m -- "$1")" "${@:2}" ;; esac
[ -n "${NOPROP_DATA:-}" ] && NOPROP_DATA=$(realpath -m -- "$NOPROP_DATA") && export NOPROP_DATA
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m bench gpu_check "$@"
