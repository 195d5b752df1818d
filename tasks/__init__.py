"""The steps of a run as plain functions, and the Prefect tasks that wrap them.

- `run`: the state that all steps share.
- `discover` lists the collections, `plan` evaluates their versions, `bulk` and `prune` delete, `prune` also verifies.
- `report`: the models of the result; `rendering` and `charts` format it, `publication` and `history` write it to the server.
- `progress` updates the progress artifact, `publish` creates this package's own artifacts.
- `producers`: the helpers of flow authors.
"""
