# shd_bids in a container: any uid, read-only root, no network.
#
#   docker build -t shd_bids .                       CPU
#   docker build -t shd_bids:cuda --build-arg TORCH=cuda .
#
# The version of every dependency is that of constraints.txt; the base image holds Debian's Python 3.11.

ARG TORCH=cpu

FROM debian:bookworm-slim AS build

# Debian stable changes a package only for security, and a pinned version disappears then.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/shd_bids
ENV PATH=/opt/shd_bids/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# cpu: the build of TORCH_CPU_INDEX, which sorts above the plain version; cuda: the build of the default index.
# An empty TORCH_CPU_INDEX leaves the choice to pip's own configuration.
ARG TORCH
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# The dependencies come before the sources, so that an edited source file does not fetch them again.
COPY constraints.txt pyproject.toml /src/
WORKDIR /src
RUN case "$TORCH" in \
        cpu) set -- ${TORCH_CPU_INDEX:+--extra-index-url "$TORCH_CPU_INDEX"} ;; \
        cuda) set -- ;; \
        *) echo "TORCH=$TORCH: expected cpu or cuda" >&2; exit 2 ;; \
    esac \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && pip install "$@" -c constraints.txt -r requirements.txt \
    && torch=$(echo /opt/shd_bids/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/include" "$torch/test" "$torch"/bin/*[tT]est*

COPY README.md LICENSE setup.py /src/
COPY workflows /src/workflows
COPY shd_bids /src/shd_bids
RUN pip install -c constraints.txt --no-deps .


FROM debian:bookworm-slim

LABEL org.opencontainers.image.title="shd_bids" \
      org.opencontainers.image.description="Fibre orientation distributions for BIDS data sets by equivariant spatio-hemispherical deconvolution" \
      org.opencontainers.image.licenses="Apache-2.0"

# Triton compiles a small C file for each of its kernels, on the machine that runs them.
ARG TORCH
# hadolint ignore=DL3008
RUN apt-get update \
    && if [ "$TORCH" = cuda ]; then set -- gcc libc6-dev python3-dev; fi \
    && apt-get install -y --no-install-recommends python3 "$@" \
    && rm -rf /var/lib/apt/lists/*

COPY --from=build /opt/shd_bids /opt/shd_bids

# A uid without a name or a home, a root that cannot be written and no network: caches go to /tmp, nothing calls out.
ENV PATH=/opt/shd_bids/bin:$PATH \
    LANG=C.UTF-8 \
    HOME=/tmp \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1

WORKDIR /tmp
ENTRYPOINT ["shd_bids"]
CMD ["--help"]
