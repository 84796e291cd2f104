"""How Ratchet is run: deployments, the embedded stack, the command line."""
