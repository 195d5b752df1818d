"""The cleanup flow, the command line and the demo. Orchestration only: the work is done in `tasks`."""
