# The Ray nodes with GPUs, and a worker on a GPU box. Build from the repository's root:
#   docker build -f infra/images/gpu.Dockerfile -t saeflow-gpu:0.1.0 .
# torch's wheels for Linux carry CUDA's libraries; the machine needs NVIDIA's driver and container toolkit alone. gcc is
# here for Triton, which compiles its launchers when a kernel first runs.
FROM python:3.12.8-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
RUN python -m venv /venv \
 && /venv/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['cluster'] + ['triton']))" > requirements.txt \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY deployments deployments
COPY flows flows
COPY sae_core sae_core
COPY tasks tasks
RUN /venv/bin/pip install --no-cache-dir --no-deps -c constraints.txt .

FROM python:3.12.8-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev procps \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home saeflow && install -d -o saeflow -g saeflow /scratch
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SAEFLOW_SCRATCH=/scratch \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/saeflow
CMD ["saeflow", "--help"]
