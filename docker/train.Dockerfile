# Training: every extra, ManiSkill and Meta-World drawn without a display, on an NVIDIA GPU or on the processor.
#   docker build --file docker/train.Dockerfile --build-arg USER_ID="$(id -u)" --tag flowpolicy-train .     at the top
# torch brings its own CUDA libraries from its wheels; the base brings what a driver of the host is mounted into.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# python3-venv brings Python 3.12; g++ and python3-dev: trainer.compile=true compiles; libxext6: the host's GL driver
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ libxext6 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /opt/source/
COPY scripts/setup.sh scripts/constraints.txt /opt/source/scripts/
COPY configs /opt/source/configs
COPY envs /opt/source/envs
COPY flowpolicy /opt/source/flowpolicy
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/source/scripts/setup.sh --venv /opt/flowpolicy --extras all && rm -rf /var/lib/apt/lists/*

# Where EGL and Vulkan look for the host's NVIDIA driver, once it is mounted; without one Mesa draws.
COPY docker/egl_nvidia.json /usr/share/glvnd/egl_vendor.d/10_nvidia.json
COPY docker/vulkan_nvidia.json /usr/share/vulkan/icd.d/nvidia_icd.json
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

# The owner of what it writes. Ubuntu's image has an account with number 1000.
ARG USER_ID=1000
RUN if getent passwd ubuntu; then userdel --remove ubuntu; fi \
    && useradd --uid "$USER_ID" --user-group --create-home flowpolicy \
    && install --directory --owner flowpolicy --group flowpolicy /workspace /workspace/data /workspace/runs
ENV PATH=/opt/flowpolicy/bin:$PATH PYTHONUNBUFFERED=1
USER $USER_ID:$USER_ID
WORKDIR /workspace

# A training ends by itself; nothing answers while it runs.
HEALTHCHECK NONE
ENTRYPOINT ["flowpolicy"]
CMD ["--help"]
