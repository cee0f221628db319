#!/usr/bin/env bash
# Run a command where a Docker engine answers and EVPACK_WORKER_IMAGE names a fresh worker image.
#   tools/with_docker.sh COMMAND...
# Where no engine answers, root installs and starts one of Debian for the command's time and leaves nothing of it behind.
# Where that is not possible, it says so and ends with 77: nothing can be run in containers there.
set -euo pipefail
cd "$(dirname "$0")/.."
context=${EVPACK_IMAGE_CONTEXT:-$PWD/wheelhouse}
engine=

# Whatever of this fails, what counts is how the command ended.
stop() {
    local ended=$?
    set +e
    if [ -n "$engine" ]; then
        kill "$engine"
        for _ in $(seq 600); do kill -0 "$engine" || break; sleep 0.1; done
        kill -KILL "$engine"
    fi 2>/dev/null
    awk -v place="$place/" 'index($2, place) == 1 {print $2}' /proc/mounts | xargs --no-run-if-empty umount --lazy
    rm -rf "$place"
    exit "$ended"
}

start() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || ! unshare --mount --pid --fork true 2>/dev/null; then
        echo "skipped: no Docker engine answers, and none can be installed here (needs root, apt-get and namespaces)"
        exit 77
    fi
    local need missing=()
    for need in dockerd:docker.io debootstrap:debootstrap; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    if ((${#missing[@]})); then
        tools/apt_install.sh "${missing[@]}" >/dev/null
    fi
    place=$(mktemp -d)
    trap stop EXIT
    export DOCKER_HOST=unix://$place/docker.sock
    # Containers have no network, so neither has the engine.
    setsid dockerd --data-root "$place/data" --exec-root "$place/exec" --pidfile "$place/pid" --host "$DOCKER_HOST" \
        --bridge none --iptables=false >"$place/log" 2>&1 &
    engine=$!
    for _ in $(seq 3000); do
        docker info >/dev/null 2>&1 && return
        kill -0 "$engine" 2>/dev/null || break
        sleep 0.2
    done
    tail -20 "$place/log" >&2
    exit 1
}

docker info >/dev/null 2>&1 || start
tools/docker_base.sh >/dev/null
EVPACK_WORKER_IMAGE=$(tools/worker_image.sh "$context")
export EVPACK_WORKER_IMAGE
"$@"
