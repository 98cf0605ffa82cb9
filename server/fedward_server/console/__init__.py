"""The centre's console: pages for people and metrics for Prometheus, from the files of the centre's folder."""
