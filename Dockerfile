# One image for the replicas and the provider simulators. The dependencies are a layer below the code, so that a change
# of the code rebuilds and transfers only the code.

FROM docker.io/library/python:3.13-slim AS dependencies
RUN python -m venv --without-pip /opt/mesh
COPY deploy/requirements.txt /tmp/requirements.txt
# Wheels only: every dependency has one for amd64 and for arm64, so the image needs no compiler.
RUN pip --python /opt/mesh install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement /tmp/requirements.txt \
    # The names of places behind phone numbers: 40 MB that we do not use.
    && rm -r /opt/mesh/lib/python3.*/site-packages/phonenumbers/geodata

FROM dependencies AS code
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore setuptools==80.9.0
WORKDIR /src
COPY setup.cfg pyproject.toml ./
COPY mesh ./mesh
COPY quart_app ./quart_app
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/mesh install --no-cache-dir --disable-pip-version-check --no-deps --no-index \
        --prefix /opt/code /wheels/*.whl

FROM docker.io/library/python:3.13-slim
# The user writes only to /data, a volume. The root file system may be read-only.
RUN useradd --no-log-init --user-group --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin mesh \
    && install --directory --owner mesh --group mesh /data
# The allocator of the replicas, in the version of the base's distribution; quart_app/local/allocator.py says why.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends libjemalloc2 \
    && rm -rf /var/lib/apt/lists/*
COPY --chmod=0755 deploy/healthy /usr/local/bin/healthy
COPY --from=dependencies /opt/mesh /opt/mesh
COPY --from=code /opt/code /opt/mesh
ENV PATH=/opt/mesh/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LD_PRELOAD=libjemalloc.so.2 \
    PYTHONMALLOC=malloc \
    HOST=0.0.0.0
USER 10001:10001
# Services keep their files in data/... of the working folder, which is /data.
WORKDIR /
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
# Healthy means ready: the replica holds a lease, Redis answers, and the services have started. A spare is healthy, too.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["healthy", "8001", "/readyz", "spare"]
CMD ["python", "-m", "quart_app"]
