#!/usr/bin/env bash
# Install Debian packages, as root. What passes by itself (somebody else's lock, a mirror that does not answer) is waited for.
#   tools/apt_install.sh PACKAGE...
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
for pause in 5 20 0; do
    if apt-get update -qq &&
        apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"; then
        exit 0
    fi
    sleep "$pause"
done >&2
exit 1
