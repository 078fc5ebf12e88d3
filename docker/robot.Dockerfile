# A robot's computer: numpy, onnxruntime and flowpolicy's own wheel run an exported bundle. No torch, no compiler, no pip.
#   docker build --file docker/robot.Dockerfile --build-arg USER_ID="$(id -u)" --tag flowpolicy-robot .     at the top
#   docker run --rm --volume "$PWD/bundle:/bundle:ro" flowpolicy-robot         one prediction: does this bundle run here?
FROM debian:12.11-slim AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /opt/source/
COPY scripts/setup.sh scripts/constraints.txt /opt/source/scripts/
COPY configs /opt/source/configs
COPY envs /opt/source/envs
COPY flowpolicy /opt/source/flowpolicy

# What the robot's own program needs besides, a list of words; numba for point clouds.
ARG PACKAGES=""
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/source/scripts/setup.sh --venv /opt/flowpolicy --runtime $PACKAGES \
    && /opt/flowpolicy/bin/python -m pip uninstall --yes setuptools pip \
    && rm /opt/flowpolicy/setup.log

FROM debian:12.11-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/flowpolicy /opt/flowpolicy
ARG USER_ID=1000
RUN useradd --uid "$USER_ID" --user-group --create-home robot \
    && install --directory --owner robot --group robot /workspace
ENV PATH=/opt/flowpolicy/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
USER $USER_ID:$USER_ID
WORKDIR /workspace

# Rarely, and behind everything else: it opens the bundle beside the loop that runs it.
HEALTHCHECK --interval=5m --timeout=60s --start-period=10s --retries=2 \
    CMD ["nice", "-n", "19", "python", "-m", "flowpolicy.deploy.health", "/bundle"]
CMD ["python", "-m", "flowpolicy.deploy.health", "/bundle"]
