# Two stages: what builds stays behind. The image runs as a user without rights, on a read-only root file system; only
# /var/lib/bcss-gateway is written (which calls may still be running, and the runs), so put a volume there that survives
# restarts.
#
#   docker build -t bcss-gateway .
#   docker run --read-only -v bcss-state:/var/lib/bcss-gateway -v "$PWD/config.yaml:/etc/bcss-gateway/config.yaml:ro" \
#     -p 8080:8080 -p 9464:9464 bcss-gateway
#   docker exec CONTAINER bcss-gateway runs list

FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.txt
RUN python -m venv /opt/bcss-gateway \
 && /opt/bcss-gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY policies policies
RUN /opt/build/bin/python -m hatchling build -t wheel -d /src/dist \
 && /opt/bcss-gateway/bin/pip install --no-cache-dir --no-deps --no-index /src/dist/*.whl \
 && /opt/bcss-gateway/bin/python -m compileall -q /opt/bcss-gateway

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/bcss-gateway --create-home bcss
COPY --from=build /opt/bcss-gateway /opt/bcss-gateway
ENV PATH=/opt/bcss-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    BCSS_GATEWAY_CONFIG=/etc/bcss-gateway/config.yaml
USER 10001
WORKDIR /var/lib/bcss-gateway
VOLUME /var/lib/bcss-gateway
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
  ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=2)"]
CMD ["bcss-gateway", "serve"]
