"""Flows that run as they stand, in the demo, too: what this package helps those with who write artifacts."""
