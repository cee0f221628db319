"""How long a campaign takes on so many devices: a simulation of Airflow's scheduler over the campaign's own plan."""
