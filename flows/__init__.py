"""What runs: one module per Prefect flow."""
