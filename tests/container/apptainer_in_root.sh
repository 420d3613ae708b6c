#!/bin/bash
# apptainer_in_root.sh ROOT WORKDIR ARGUMENT...: run `apptainer ARGUMENT...` of the root folder made by
# apptainer_root.sh, as uid 1000, with WORKDIR at /job. Folders named in APPTAINER_RO are shown at their own paths.
#
# Apptainer wants an ordinary uid with user namespaces, a root that is a mount point (pivot_root, not chroot) and a
# /dev/fuse it may open. WORKDIR and all above it must be enterable by uid 1000, which must own WORKDIR.
set -euo pipefail

# The single-quoted text is a script of its own, which expands its variables itself.
# shellcheck disable=SC2016
exec unshare -m --propagation private sh -euc '
root=$0; work=$1; shift
mount --rbind "$root" "$root"; cd "$root"
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; mount -t tmpfs tmpfs run
mknod -m 666 run/fuse c 10 229; mount --bind run/fuse dev/fuse
mkdir -p old job; mount --bind "$work" job
for d in ${APPTAINER_RO:-}; do mkdir -p ".$d"; mount --bind -o ro "$d" ".$d"; done
pivot_root . old; umount -l /old
cd /job
exec setpriv --reuid 1000 --regid 1000 --clear-groups \
    env -i HOME=/home/app PATH=/usr/sbin:/usr/bin:/sbin:/bin apptainer "$@"' "$@"
