# One image for `jarvis collector`, `jarvis web` and the rest of the command line:
#   docker build -t jarvis-otel:local . && docker run --rm jarvis-otel:local flags list
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE THIRD_PARTY.md ./
COPY jarvis_otel jarvis_otel
COPY providers providers
COPY collector collector
COPY examples examples
RUN python -m venv /opt/jarvis \
 && /opt/jarvis/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[collector,web,telegram,query,etcd]'

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="jarvis-otel" \
      org.opencontainers.image.description="Feature flags and structured logs on OpenFeature and OpenTelemetry" \
      org.opencontainers.image.licenses="Apache-2.0"
# the project root: compose mounts config/, logs/ and var/ of a checkout over these
RUN groupadd --gid 10001 jarvis \
 && useradd --uid 10001 --gid jarvis --no-create-home --home-dir /jarvis --shell /usr/sbin/nologin jarvis \
 && install -d -o jarvis -g jarvis -m 0750 /jarvis /jarvis/logs /jarvis/var
COPY --from=build /opt/jarvis /opt/jarvis
COPY --chown=jarvis:jarvis config/flags.yaml config/flags.schema.json config/jarvis.yaml /jarvis/config/
ENV PATH=/opt/jarvis/bin:$PATH JARVIS_HOME=/jarvis PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /jarvis
STOPSIGNAL SIGTERM
ENTRYPOINT ["jarvis"]
CMD ["--help"]
