#!/bin/bash
# build_image.sh [TAG [CONTEXT [BUILD-OPTION...]]]: build the image with whatever builder this machine has.
# Exit 77 (skip) with a reason where none works.
set -euo pipefail

tag=${1:-shd_bids:latest}
context=${2:-.}
shift $(($# < 2 ? $# : 2))
here=$(cd "$(dirname "$0")" && pwd)

if docker info > /dev/null 2>&1; then
    exec docker build -t "$tag" "$@" "$context"
fi
builder=$(command -v buildah || command -v podman || true)
if [ -z "$builder" ]; then
    echo "SKIP: no container builder: a Docker engine, buildah or podman is needed" >&2
    exit 77
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
options=()
while IFS= read -r mount; do
    options+=(--volume "$mount")
done < <(python3 "$here/pip_mounts.py" "$tmp")
# A machine whose pip has sources of its own gets torch from them too.
if grep -qE '^(find-links|index-url|extra-index-url) ' "$tmp/pip.conf"; then
    options+=(--build-arg TORCH_CPU_INDEX=)
fi
case $builder in
    *buildah) "$builder" bud --layers --isolation chroot "${options[@]}" -t "$tag" "$@" "$context" ;;
    *) "$builder" build --isolation chroot "${options[@]}" -t "$tag" "$@" "$context" ;;
esac
