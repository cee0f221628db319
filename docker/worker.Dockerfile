# What a step needs and nothing else: torch for the CPU or for CUDA, transformers, this package; no Airflow, no key, no pip.
# The context is a directory that tools/worker_image.sh fills: wheels/ (third parties) and own/ (this package's wheel).
# Nothing is fetched while it builds, so it builds behind an air gap too.

# Any Debian-like image with Python 3.11, its venv module and tini (tools/docker_base.sh makes one); give it by digest or id.
ARG BASE=evpack-base:bookworm

FROM ${BASE} AS packages
COPY wheels/ /wheels/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-index --no-compile --find-links /wheels -r /wheels/requirements.txt \
    && /opt/venv/bin/pip uninstall --yes pip setuptools \
    # Templates among the packages are no Python, which must not stop the build.
    && { /opt/venv/bin/python3 -m compileall -q -j 0 /opt/venv/lib || true; }
COPY own/ /own/
RUN mkdir /opt/own && python3 -m zipfile -e /own/evpack-*.whl /opt/own && python3 -m compileall -q /opt/own

FROM ${BASE}
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /opt/own /opt/own
ARG REVISION=unknown
LABEL org.opencontainers.image.title="evpack worker" org.opencontainers.image.revision=${REVISION}
# Where a process may write is decided when a container starts: its root is read-only, /tmp is memory.
ENV PATH=/opt/venv/bin:/usr/bin:/bin PYTHONPATH=/opt/own EVPACK_BUILT_IN=/opt/own \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# Nobody in particular; a step gets the user who owns its run directory.
USER 65534:65534
WORKDIR /tmp
# The init forwards SIGTERM to the step and reaps what the step leaves.
ENTRYPOINT ["tini", "-g", "--", "python3", "-m", "evpack.cli.main"]
