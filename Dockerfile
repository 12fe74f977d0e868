# Two images from one file; docs/container.md says what is in them and how they are run:
#   docker build --target serve  -t fuseline .
#   docker build --target export -t fuseline-export .
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# What builds, and stays behind: both images take only the finished environment /opt/fuseline.
FROM base AS builder
# A company's own certificate authority, where packages come through a proxy; mounted at build time only.
ARG PIP_CERT
WORKDIR /build
RUN python -m venv --without-pip /opt/tools && python -m venv --without-pip /opt/fuseline
COPY deploy/requirements-build.lock deploy/
RUN pip --python /opt/tools/bin/python install --require-hashes -r deploy/requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY fuseline fuseline
COPY export export
COPY serve serve
COPY protos protos
COPY benchmarks benchmarks
COPY deploy deploy
RUN /opt/tools/bin/python -m hatchling build -t wheel -d /wheels

FROM builder AS serve-builder
# cpu: OpenVINO and ONNX Runtime. gpu: ONNX Runtime with CUDA, and TensorRT; the host lends the driver.
ARG RUNTIME=cpu
COPY requirements-serve-${RUNTIME}.lock ./
RUN pip --python /opt/fuseline/bin/python install --no-compile --require-hashes -r requirements-serve-${RUNTIME}.lock \
    && pip --python /opt/fuseline/bin/python install --no-compile --no-index --no-deps /wheels/*.whl \
    && /opt/fuseline/bin/python deploy/slim_environment.py serve-${RUNTIME} \
    && /opt/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /opt/fuseline/sbom.cdx.json /opt/fuseline/bin/python

FROM builder AS export-builder
# A folder or page of PyTorch wheels without CUDA (pip's --find-links). Without it torch comes with CUDA, 5 GB of it.
ARG TORCH_WHEELS
COPY requirements-export.lock ./
# Which version of torch there is, is that page's affair.
# hadolint ignore=DL3013
RUN if [ -z "$TORCH_WHEELS" ]; then \
        pip --python /opt/fuseline/bin/python install --no-compile --require-hashes -r requirements-export.lock; \
    else \
        python deploy/without_cuda.py requirements-export.lock > without-cuda.lock \
        && pip --python /opt/fuseline/bin/python install --no-compile --no-deps --require-hashes -r without-cuda.lock \
        && pip --python /opt/fuseline/bin/python install --no-compile --no-deps --no-index --find-links "$TORCH_WHEELS" torch; \
    fi \
    && pip --python /opt/fuseline/bin/python install --no-compile --no-index --no-deps /wheels/*.whl \
    && /opt/fuseline/bin/python deploy/slim_environment.py export \
    && /opt/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /opt/fuseline/sbom.cdx.json /opt/fuseline/bin/python

FROM base AS export
COPY --from=export-builder /opt/fuseline /opt/fuseline
# Whoever `--user` names has a home to write to.
ENV PATH=/opt/fuseline/bin:$PATH HOME=/tmp
WORKDIR /work
# So that `docker run … IMAGE export --fp16 resnet18.pt` is typed in full.
CMD ["export", "--help"]

FROM base AS serve
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent fuseline \
    && mkdir /models \
    && install --directory --owner=10001 /var/cache/fuseline
COPY --from=serve-builder /opt/fuseline /opt/fuseline
# In a container other hosts are let in by what publishes the ports, so the server listens on every address.
# Engines that a GPU server builds are kept in /var/cache/fuseline/engines; nothing else is ever written.
ENV PATH=/opt/fuseline/bin:$PATH FUSELINE_HOST=0.0.0.0 XDG_CACHE_HOME=/var/cache
USER 10001
EXPOSE 8001 8002
VOLUME /models
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["fuseline", "health"]
ENTRYPOINT ["fuseline"]
CMD ["serve", "/models"]
