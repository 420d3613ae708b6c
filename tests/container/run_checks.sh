#!/bin/bash
# run_checks.sh [image] [apptainer]: build the container images for real, run the demo data set in them without
# network, on a read-only root, as a uid without a name, with read-only input, and compare the peaks with those of
# the installed package. Without arguments both are checked. What cannot be had here is skipped with its reason; the
# exit status is 0 (passed or skipped) or 1 (failed).
#
#   PYTHON            the Python in which shd_bids is installed (default: .venv/bin/python)
#   SHD_CHECK_DIR     where to work, kept afterwards (default: a temporary folder that is removed)
#   SHD_IMAGE         check this image instead of building one
#   SHD_OPTIONS       further options of the runs, such as "--level peaks"
#   APPTAINER_ROOT    a root folder made by apptainer_root.sh, used where apptainer itself is not installed
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
python=${PYTHON:-$source/.venv/bin/python}
if [ -n "${SHD_CHECK_DIR:-}" ]; then
    mkdir -p "$SHD_CHECK_DIR"
    work=$(realpath "$SHD_CHECK_DIR")
else
    work=$(mktemp -d /var/tmp/shd_check.XXXXXX)
    trap 'rm -rf "$work"' EXIT
fi
chmod 755 "$work"
read -ra options <<< "${SHD_OPTIONS:-}"

# The run that the containers must equal.
reference() {
    [ -f "$work/here/dataset_description.json" ] && return
    "$python" -m shd_bids.cli.demo --data-only "$work/demo"
    "$python" -m shd_bids "$work/demo/bids" "$work/here" participant "${options[@]}"
}

skip() {
    echo "SKIP $1: $2"
}

# The command that runs an image, in the array `run`; 1 where none works. Some machines allow neither the limits that
# podman asks for nor its default runtime, so a second try asks for less.
find_runner() {
    local image=$1
    if docker info > /dev/null 2>&1; then
        run=(docker run)
        return
    fi
    command -v podman > /dev/null || return 1
    run=(podman run)
    podman run --rm --network none "$image" --version > /dev/null 2>&1 && return
    cat > "$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
CONF
    export CONTAINERS_CONF=$work/containers.conf
    podman run --rm --network none "$image" --version > /dev/null
}

check_image() {
    local image=${SHD_IMAGE:-}
    if [ -z "$image" ]; then
        image=shd_bids:check
        local status=0
        "$here/build_image.sh" "$image" "$source" || status=$?
        if [ $status = 77 ]; then
            skip image "no builder"
            return
        fi
        [ $status = 0 ] || return 1
    fi
    if ! find_runner "$image"; then
        skip image "it was built, but nothing here can run it"
        return
    fi
    reference
    rm -rf "$work/image"
    mkdir -m 777 "$work/image"
    "${run[@]}" --rm --network none --read-only --tmpfs /tmp --user 12345:12345 \
        --volume "$work/demo/bids:/data:ro" --volume "$work/image:/out" \
        "$image" /data /out participant "${options[@]}"
    "$python" "$here/compare_peaks.py" "$work/here" "$work/image"
    echo "PASS image"
}

# Build from singularity.def, changed only in where its base and pip's packages come from.
check_apptainer() {
    local apptainer job in_job
    job=$work/job
    rm -rf "$job"
    mkdir -p "$job/out"
    if command -v apptainer > /dev/null; then
        apptainer=(env -C "$job" apptainer)
        in_job=$job
    elif [ -x "${APPTAINER_ROOT:-/nonexistent}/usr/bin/apptainer" ] && [ "$(id -u)" = 0 ]; then
        apptainer=("$here/apptainer_in_root.sh" "$APPTAINER_ROOT" "$job")
        in_job=/job
    else
        skip apptainer "it is not installed, and APPTAINER_ROOT names no root folder of apptainer_root.sh"
        return
    fi

    tar -C "$source" --exclude=__pycache__ --exclude='*.so' -cf - \
        LICENSE README.md constraints.txt pyproject.toml setup.py shd_bids workflows singularity.def | tar -C "$job" -xf -
    local definition=singularity.def build=(build --force)
    if buildah images --quiet docker.io/library/debian:bookworm-slim > /dev/null 2>&1; then
        buildah push -q docker.io/library/debian:bookworm-slim "docker-archive:$job/base.tar"
        definition=here.def
        sed -e 's/^Bootstrap: docker$/Bootstrap: docker-archive/' -e "s|^From: .*|From: $in_job/base.tar|" \
            "$job/singularity.def" > "$job/here.def"
        # shellcheck disable=SC2016  # expanded by apptainer
        printf '\n%%setup\n    mkdir -p ${APPTAINER_ROOTFS}/run\n' >> "$job/here.def"
        local mount from to folders=()
        while IFS= read -r mount; do
            IFS=: read -r from to _ <<< "$mount"
            if [ -d "$from" ]; then
                folders+=("$from")
                echo "    mkdir -p \${APPTAINER_ROOTFS}$to" >> "$job/here.def"
                build+=(-B "$mount")
            else
                cp "$from" "$job/$(basename "$to")" 2> /dev/null || true
                echo "    touch \${APPTAINER_ROOTFS}$to" >> "$job/here.def"
                build+=(-B "$in_job/$(basename "$to"):$to:ro")
            fi
        done < <(python3 "$here/pip_mounts.py" "$job")
        export APPTAINER_RO="${folders[*]}"
        if grep -qE '^(find-links|index-url|extra-index-url) ' "$job/pip.conf"; then
            build+=(--build-arg torch_cpu_index=)
        fi
    fi
    reference
    cp -r "$work/demo/bids" "$job/bids"
    [ "$(id -u)" != 0 ] || chown -R 1000:1000 "$job"

    "${apptainer[@]}" "${build[@]}" shd_bids.sif "$definition"
    "${apptainer[@]}" test shd_bids.sif
    "${apptainer[@]}" run --containall --cleanenv --no-home --net --network none \
        -B "$in_job/bids:/data:ro" -B "$in_job/out:/out" shd_bids.sif /data /out participant "${options[@]}"
    "$python" "$here/compare_peaks.py" "$work/here" "$job/out"
    echo "PASS apptainer"
}

[ $# -gt 0 ] || set -- image apptainer
for check; do
    case $check in
        image) check_image ;;
        apptainer) check_apptainer ;;
        *)
            echo "found $check, expected image or apptainer" >&2
            exit 2
            ;;
    esac
done
