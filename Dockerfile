# The image of every pod: jobs, learners, replicas.   docker build --tag recfuse:0.1.0 .
# A GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
# The digest is that of the index over all architectures, as public repositories pin it; the tag says what it is.
ARG PYTHON=3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv --without-pip /opt/recfuse
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY platform platform
COPY serving serving
COPY tune tune
COPY jobs jobs
# Wheels or nothing: nothing is compiled. `setuptools` builds our own, which is pure Python.
RUN pip --disable-pip-version-check install --no-cache-dir "setuptools==84.2.1" \
 && pip --python /opt/recfuse/bin/python install --no-cache-dir --only-binary :all: \
      --extra-index-url "${TORCH_INDEX}" --constraint constraints.txt "setuptools==84.2.1" \
 && pip --python /opt/recfuse/bin/python install --no-cache-dir --only-binary :all: \
      --extra-index-url "${TORCH_INDEX}" --constraint constraints.txt --no-build-isolation . \
 && pip --python /opt/recfuse/bin/python uninstall --yes setuptools

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="recfuse"
# No package manager of Python either: what runs is what was built.
RUN pip uninstall --yes setuptools wheel pip 2>/dev/null; rm -rf /root/.cache \
 && groupadd --gid 10001 recfuse \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin recfuse
COPY --from=build /opt/recfuse /opt/recfuse
COPY --chown=0:0 jobs /app/jobs
COPY --chown=0:0 tune /app/tune
COPY --chown=0:0 serving /app/serving
COPY --chown=0:0 platform /app/platform
ENV PATH=/opt/recfuse/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app/platform:/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_DATA_DISABLE_PROGRESS_BARS=1 \
    RAY_AUTH_MODE=token
WORKDIR /app
USER 10001:10001
# KubeRay puts `ray start` in its place; by hand: docker run recfuse python jobs/ingest.py --help
CMD ["python", "-c", "import recfuse, ray; print('recfuse on ray', ray.__version__)"]
