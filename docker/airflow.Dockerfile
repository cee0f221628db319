# Airflow and this project's DAGs on top of the worker image, so that what plans and judges is the code that computes.
# The context is filled by tools/airflow_image.sh: wheels/ (Airflow and what it needs), dags/, plugins/. Nothing is fetched.
ARG BASE=evpack-base:bookworm
ARG WORKER=evpack-worker

FROM ${BASE} AS pip
RUN python3 -m venv /pip

FROM ${WORKER} AS airflow
USER 0
COPY --from=pip /pip /pip
COPY wheels/ /wheels/
RUN /pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-index --no-compile --find-links /wheels \
        --constraint /wheels/constraints.txt --target /opt/airflow -r /wheels/requirements.txt \
    && { python3 -m compileall -q -j 0 /opt/airflow || true; }

FROM ${WORKER}
COPY --from=airflow /opt/airflow /opt/airflow
COPY dags/ /opt/project/dags/
COPY plugins/ /opt/project/plugins/
# What is in both comes from the worker image's own packages.
ENV PYTHONPATH=/opt/own:/opt/venv/lib/python3.11/site-packages:/opt/airflow EVPACK_PROJECT=/opt/project
CMD ["airflow", "up"]
