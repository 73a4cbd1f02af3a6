# Prefect server and worker, drivers, CPU stages. Build from the repository's root:
#   docker build -f infra/images/cpu.Dockerfile -t saeflow-cpu:0.1.0 .
# Layers from what changes seldom to what changes often: system, libraries, this project.
FROM python:3.12.8-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
# The libraries alone, from the project's own list: this layer stays while only our code changes.
RUN python -m venv /venv \
 && /venv/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['cluster']))" > requirements.txt \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY deployments deployments
COPY flows flows
COPY sae_core sae_core
COPY tasks tasks
RUN /venv/bin/pip install --no-cache-dir --no-deps -c constraints.txt .

FROM python:3.12.8-slim-bookworm
RUN useradd --uid 1000 --create-home saeflow && install -d -o saeflow -g saeflow /scratch
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SAEFLOW_SCRATCH=/scratch \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/saeflow
CMD ["saeflow", "--help"]
