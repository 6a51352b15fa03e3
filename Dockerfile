# The image serves; with `migrate` as its command it migrates. It keeps nothing outside /data, so
# the root file system can be read-only. `make image-proof` runs these steps without an engine.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements/run.lock requirements/run.lock
RUN python -m venv /opt/authsvc \
    && /opt/authsvc/bin/pip install --quiet --require-hashes -r requirements/run.lock
COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY src src
RUN /opt/authsvc/bin/pip install --quiet --no-deps --no-build-isolation . \
    && /opt/authsvc/bin/pip uninstall --quiet --yes hatchling editables setuptools pip
COPY docker/healthcheck.py /opt/authsvc/healthcheck.py

FROM python:${PYTHON}-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /data --no-create-home authsvc \
    && install --directory --owner=authsvc --mode=0700 /data
COPY --from=build /opt/authsvc /opt/authsvc
ENV PATH=/opt/authsvc/bin:$PATH \
    HOME=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AUTH_SERVER_HOST=0.0.0.0
# Where the SQLite file is, unless PostgreSQL is set.
VOLUME /data
WORKDIR /data
USER 10001
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "/opt/authsvc/healthcheck.py", "/health/live"]
ENTRYPOINT ["authsvc"]
CMD ["serve"]
