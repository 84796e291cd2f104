"""The servers of one machine: an S3 server, a Prefect server and workers, and what ends them."""
