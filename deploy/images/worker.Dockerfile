# The worker: one diffusers pipeline, with PyTorch and the CUDA libraries that it brings.
#
#   docker build -f deploy/images/worker.Dockerfile -t kubediffusion-worker .
#
# The context is the repository. Everything is installed from pinned and hashed requirements, by an installer that is not
# left behind. On a network with a certificate authority of its own, hand its certificates in:
# --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt

ARG BASE_IMAGE=python:3.11-slim-bookworm

# The project's own packages, made into wheels and unpacked.
FROM ${BASE_IMAGE} AS packages
ENV UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
COPY requirements/uv.txt requirements/build.txt /requirements/
RUN --mount=type=secret,id=ca,target=/run/ca.crt --mount=type=cache,id=uv,target=/var/cache/uv \
    if [ -s /run/ca.crt ]; then export PIP_CERT=/run/ca.crt SSL_CERT_FILE=/run/ca.crt; fi; \
    python3 -m venv /uv && \
    /uv/bin/python -m pip install --quiet --no-cache-dir --require-hashes -r /requirements/uv.txt && \
    /uv/bin/uv venv --quiet /build && \
    /uv/bin/uv venv --quiet /opt/kubediffusion && \
    /uv/bin/uv pip install --quiet --python /build --require-hashes -r /requirements/build.txt
COPY resources /src/resources
COPY worker /src/worker
RUN for package in resources worker; do \
        /uv/bin/uv build --quiet --offline --wheel --no-build-isolation --python /build --out-dir /wheels /src/$package || \
            exit; \
    done && \
    /uv/bin/uv pip install --quiet --offline --no-cache --python /opt/kubediffusion --target /opt/packages --no-deps \
        --compile-bytecode /wheels/*.whl

FROM ${BASE_IMAGE}
# torch.compile: Triton builds its CUDA driver's module with a C compiler when it is first used, and code for the CPU is C++.
RUN headers=$(python3 -c "import sysconfig; print(sysconfig.get_paths()['include'])") && \
    apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends g++ \
        $(test -e "$headers/Python.h" || echo libpython3-dev) >/dev/null && \
    test -e "$headers/Python.h" && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
# What the packages depend on is a layer of its own: a change of the project's code leaves it as it is.
# Where nothing is built twice, UV_NO_CACHE=1 saves the disk that the cache takes.
ARG UV_NO_CACHE
COPY requirements/uv.txt requirements/worker.txt /usr/share/doc/kubediffusion/
RUN --mount=type=secret,id=ca,target=/run/ca.crt --mount=type=cache,id=uv,target=/var/cache/uv \
    if [ -s /run/ca.crt ]; then export PIP_CERT=/run/ca.crt SSL_CERT_FILE=/run/ca.crt; fi; \
    export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never; \
    cd /usr/share/doc/kubediffusion && \
    python3 -m venv /tmp/uv && \
    /tmp/uv/bin/python -m pip install --quiet --no-cache-dir --require-hashes -r uv.txt && \
    /tmp/uv/bin/uv venv --quiet /opt/kubediffusion && \
    /tmp/uv/bin/uv pip install --quiet --python /opt/kubediffusion --require-hashes --compile-bytecode -r worker.txt && \
    rm -rf /tmp/uv
COPY --from=packages /opt/packages /opt/packages
COPY LICENSE /usr/share/doc/kubediffusion/
# A user without an entry in passwd has a name and a home all the same: libraries ask for them.
ENV USER=kubediffusion \
    HOME=/tmp \
    PATH=/opt/packages/bin:/opt/kubediffusion/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kubediffusion-worker" \
      org.opencontainers.image.description="KubeDiffusion's worker" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
WORKDIR /
ENTRYPOINT ["kubediffusion-worker"]
