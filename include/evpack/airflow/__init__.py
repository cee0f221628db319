"""Airflow's side: the DAG factory, the operators, and an Airflow that starts and stops with one command."""
