"""The steps of a run as plain functions, and the Prefect tasks that wrap them.

- `run`: the state that all steps share.
- `discover` lists the collections, and `plan` evaluates their versions.
- `prune` deletes through the API (`grouping`, `checks` and `deletions` are its parts), `prune_database` in the database.
- `verify` looks after the collections, `reclaim` after the space on disk.
- `report`: the models of the result; `rendering` and `charts` format it, `publication` and `history` write it to the server.
- `progress` updates the progress artifact, `publish` creates this package's own artifacts.
- `simulation` adds up what policies would leave over time, and `observation` reads the keys of a server for it.
- `producers`: the helpers of flow authors.
"""
