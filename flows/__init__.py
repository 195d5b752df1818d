"""What runs: the cleanup flow, the command line, the demo. Orchestration only."""
