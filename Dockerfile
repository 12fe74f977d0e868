# Two images from one file:
#   docker build --target serve  -t fuseline .
#   docker build --target export -t fuseline-export .
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# A company's own certificate authority, where packages come through a proxy; mounted at build time only.
ARG PIP_CERT
WORKDIR /opt/fuseline

FROM base AS serve
COPY requirements-serve.lock ./
RUN pip install --require-hashes -r requirements-serve.lock
COPY pyproject.toml README.md LICENSE fuseline.py ./
COPY export export
COPY serve serve
COPY protos protos
COPY benchmarks benchmarks
RUN pip install --no-deps . && useradd --system --uid 10001 --no-create-home fuseline
USER 10001
# In a container other hosts are let in by what publishes the ports, so the server listens on every address.
ENV FUSELINE_HOST=0.0.0.0
EXPOSE 8001 8002
VOLUME /models
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "from urllib import request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8002/readyz', timeout=2)"]
ENTRYPOINT ["fuseline"]
CMD ["serve", "/models/model"]

FROM base AS export
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE fuseline.py ./
COPY export export
COPY serve serve
COPY protos protos
COPY benchmarks benchmarks
RUN pip install --no-deps .
WORKDIR /work
# So that `docker run … IMAGE export --fp16 resnet18.pt` is typed in full.
CMD ["export", "--help"]
