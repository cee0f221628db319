#!/usr/bin/env bash
# Build the worker image from a wheelhouse; prints the image's id, which is what EVPACK_WORKER_IMAGE names.
#   tools/worker_image.sh CONTEXT [BASE]
# CONTEXT is kept: wheels/ is filled once and reused, so a copy of it brought over an air gap is enough.
set -euo pipefail
cd "$(dirname "$0")/.."
context=$(realpath -m "${1:?give a directory for the wheels}")
base=${2:-evpack-base:bookworm}
python=${PYTHON:-.venv/bin/python}
pip=("$python" -m pip --disable-pip-version-check -qq)

mkdir -p "$context/wheels"
# All pinned packages but those of the scheduler and of development, and `datasets`: rows are fetched outside of containers.
awk '/^# /{left_out = /^# (Orchestration|Tests and lint|Studies)/} !left_out && !/^datasets==/' requirements.txt \
    >"$context/requirements.txt"
if ! cmp -s "$context/requirements.txt" "$context/wheels/requirements.txt"; then
    # torch goes first and alone: the rest then accepts the build that is there instead of choosing another one.
    "${pip[@]}" download --dest "$context/wheels" "$(grep -E '^torch==' requirements.txt | cut -d' ' -f1)" >&2
    "${pip[@]}" download --dest "$context/wheels" --find-links "$context/wheels" -r "$context/requirements.txt" >&2
    cp "$context/requirements.txt" "$context/wheels/requirements.txt"
fi
rm -rf "$context/own" build  # what an earlier wheel was made of would go into this one too
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$context/own" . >&2
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# The classic builder: a plain engine has it, and nothing here needs another.
DOCKER_BUILDKIT=0 docker build --quiet --network none --file docker/worker.Dockerfile --tag evpack-worker \
    --build-arg "BASE=$base" --build-arg "REVISION=$revision" "$context"
