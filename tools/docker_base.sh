#!/usr/bin/env bash
# A Debian base image where none can be pulled: debootstrap, then `docker import`. Needs root and a Debian mirror.
#   tools/docker_base.sh [NAME]      prints the image's id; an image of that name that is there already is kept
set -euo pipefail
name=${1:-evpack-base:bookworm}
suite=${name##*:}

if ! docker image inspect "$name" >/dev/null 2>&1; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    for pause in 5 20 -; do  # a mirror that does not answer is asked again
        debootstrap --variant=minbase --include=python3,python3-venv,tini "$suite" "$root/image" >"$root/log" 2>&1 && break
        [ "$pause" != - ] || { tail -20 "$root/log" >&2; exit 1; }
        sleep "$pause"
        rm -rf "$root/image"
    done
    rm -rf "$root"/image/var/cache/apt/archives/*.deb "$root"/image/var/lib/apt/lists/* "$root"/image/usr/share/doc/*
    tar -C "$root/image" -c . | docker import - "$name" >/dev/null
fi
docker image inspect --format '{{.Id}}' "$name"
