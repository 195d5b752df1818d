# The flow with all that it needs, for a docker or kubernetes work pool: see docs/deploy.md.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
# requirements-archive.txt has the drivers of the archive, too: docs/archive.md.
ARG REQUIREMENTS=requirements.txt
WORKDIR /build
RUN python -m venv --without-pip /opt/retention && python -m venv /tools
COPY requirements.txt requirements-archive.txt requirements-build.txt ./
RUN /tools/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-build.txt \
    && /tools/bin/pip --python /opt/retention/bin/python install --no-cache-dir --no-deps --require-hashes -r "$REQUIREMENTS"
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY stores stores
COPY tasks tasks
COPY flows flows
COPY examples examples
COPY public public
RUN /tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /tools/bin/pip --python /opt/retention/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
    && /tools/bin/pip --python /opt/retention/bin/python check

FROM ${BASE_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="prefect-artifact-retention" \
      org.opencontainers.image.description="Deletes the Prefect artifact versions that no retention policy keeps" \
      org.opencontainers.image.version="${VERSION}"
RUN useradd --uid 10001 --home-dir /var/lib/retention --create-home retention
COPY --from=build /opt/retention /opt/retention
ENV PATH=/opt/retention/bin:$PATH \
    PREFECT_HOME=/var/lib/retention/.prefect \
    PYTHONUNBUFFERED=1
# The flow reads its policies in its working directory.
WORKDIR /var/lib/retention
COPY retention.toml ./
# By number, so that Kubernetes can tell that it is not root.
USER 10001
CMD ["artifact-retention", "--help"]
