#!/usr/bin/env bash
# Build the image of docker/compose.yaml on top of a worker image; prints its id.
#   tools/airflow_image.sh CONTEXT WORKER [BASE]
# CONTEXT is kept, as that of tools/worker_image.sh (another directory).
set -euo pipefail
cd "$(dirname "$0")/.."
context=$(realpath -m "${1:?give a directory for the wheels}")
worker=${2:?give the id of the worker image}
base=${3:-evpack-base:bookworm}
python=${PYTHON:-.venv/bin/python}

mkdir -p "$context/wheels"
awk '/^# /{taken = /^# Orchestration/; next} taken || /^datasets==/' requirements.txt >"$context/requirements.txt"
if ! cmp -s "$context/requirements.txt" "$context/wheels/requirements.txt"; then
    grep -E '^[a-zA-Z]' requirements.txt | grep -v '^torch' | sed 's/ *#.*//' >"$context/wheels/constraints.txt"
    "$python" -m pip --disable-pip-version-check -qq download --dest "$context/wheels" \
        --constraint "$context/wheels/constraints.txt" -r "$context/requirements.txt" >&2
    cp "$context/requirements.txt" "$context/wheels/requirements.txt"
fi
rm -rf "$context/dags" "$context/plugins"
cp -r dags plugins "$context"
rm -rf "$context"/*/__pycache__
DOCKER_BUILDKIT=0 docker build --quiet --network none --file docker/airflow.Dockerfile --tag evpack-airflow \
    --build-arg "BASE=$base" --build-arg "WORKER=$worker" "$context"
