# The pipeline with every dependency as locked (`make locks`): LOCK is cuda (its driver comes from the host) or cpu.
#
#   docker build --build-arg LOCK=cpu --tag rllr .
#   docker run --rm --volume "$PWD/results:/rllr/results" rllr --cores all results/tiny/rllr_mix/metrics.json
FROM python:3.11-slim
ARG LOCK=cuda
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
COPY locks /rllr/locks
RUN pip install --no-cache-dir --requirement /rllr/locks/$LOCK.txt
COPY Snakefile environment.yml pyproject.toml /rllr/
COPY config /rllr/config
COPY profiles /rllr/profiles
COPY workflow /rllr/workflow
WORKDIR /rllr
ENTRYPOINT ["snakemake"]
