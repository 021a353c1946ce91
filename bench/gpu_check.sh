#!/usr/bin/env bash
exec bash "$(dirname "$0")/gpu_check/check.sh" "$@"
