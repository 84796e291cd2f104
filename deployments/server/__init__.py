"""What is registered on a Prefect server: deployments, pools, automations and channels, from `ratchet.toml`."""
