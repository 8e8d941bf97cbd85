# Two images with everything that trains, exports and measures; the second one for NVIDIA GPUs:
#   docker build --target cpu --tag sparse_accel:cpu .
#   docker build --target cuda --tag sparse_accel:cuda .
#   docker run --rm --volume "$PWD:/workspace" --user "$(id -u)" sparse_accel:cpu train text-classification --help
# The versions are those of constraints.txt. Launch files are in /usr/share/sparse_accel: see accelerate_configs/kubernetes.
# Linted by the tests (hadolint); the authors have no machine that builds images, so it has not been built by them.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS wheel
WORKDIR /sources
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY . .
# The kernels are a part of the image, or it is not made.
RUN SPARSE_ACCEL_KERNELS=required pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON_VERSION}-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 trainer
COPY constraints.txt /usr/share/sparse_accel/constraints.txt

FROM base AS cuda-packages
COPY --from=wheel /wheels /wheels
# PyPI's torch brings CUDA; the driver comes from the machine. Without ONNX Runtime's GPU build: exports are for CPUs.
RUN wheel="$(echo /wheels/*.whl)" \
    && pip install --constraint /usr/share/sparse_accel/constraints.txt "${wheel}[onnx,report,wandb]"

FROM base AS cpu-packages
COPY --from=wheel /wheels /wheels
# What torch needs comes with the rest, from PyPI. Its version is pinned: hadolint does not see where.
# hadolint ignore=DL3013
RUN torch="$(grep '^torch==' /usr/share/sparse_accel/constraints.txt)" \
    && pip install --no-deps "${torch}" --index-url https://download.pytorch.org/whl/cpu \
    && wheel="$(echo /wheels/*.whl)" \
    && pip install --constraint /usr/share/sparse_accel/constraints.txt "${wheel}[onnx,report,wandb]"

FROM cuda-packages AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN sparse_accel launch-files /usr/share/sparse_accel
USER 1000
WORKDIR /workspace
ENTRYPOINT ["sparse_accel"]
CMD ["--help"]

FROM cpu-packages AS cpu
ENV ACCELERATE_USE_CPU=true
RUN sparse_accel launch-files /usr/share/sparse_accel
USER 1000
WORKDIR /workspace
ENTRYPOINT ["sparse_accel"]
CMD ["--help"]
