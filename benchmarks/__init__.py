"""Benchmarks: this package beside the limits of what it stands on, on real Prefect servers. Run by `make bench`."""
