#!/bin/bash
# apptainer_root.sh ROOT: a Debian 13 root folder with Apptainer, for machines that have none (660 MB, as root).
#
# Debian has Apptainer in unstable only, and it needs a newer C library than Debian 12's. Dates are not checked, as
# the index of unstable expires within days on a frozen mirror; its signature is.
set -euo pipefail

root=$1
debootstrap --variant=minbase --include=ca-certificates trixie "$root"
cp /etc/resolv.conf "$root/etc/"
sed 's/ trixie / sid /; s/^deb /deb [check-valid-until=no] /' "$root/etc/apt/sources.list" \
    > "$root/etc/apt/sources.list.d/sid.list"
printf 'Package: *\nPin: release n=sid\nPin-Priority: 1\n' > "$root/etc/apt/preferences.d/sid"
chroot "$root" sh -ec '
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends squashfs-tools fuse3 squashfuse fuse2fs tar procps uidmap
    apt-get install -y -qq --no-install-recommends apptainer/sid
    useradd -m -u 1000 app'
chroot "$root" apptainer --version
