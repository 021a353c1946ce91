#!/usr/bin/env bash
# Everything a GPU has to show, in one call of under ten minutes: bash bench/gpu_check.sh OUT [PART ...]
# PYTHON names the interpreter, whose torch and Triton are used; see gpu_check.py for the rest.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
