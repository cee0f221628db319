"""The Airflow DAGs of the campaign; everything about them stands in evpack.airflow.factory."""

from evpack.airflow.factory import build_dags

evidence_campaign, evidence_nightly = build_dags()
