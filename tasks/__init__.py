"""The steps of a run: plain functions, and the Prefect tasks that are thin wrappers around them.

`run` is what all steps share, `discover` and `plan` decide, `prune` deletes and verifies, `report` has the result and
`rendering` its words, `progress` and `publish` write artifacts.
"""
