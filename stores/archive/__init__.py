"""The archive: what is deleted, and can come back, as Parquet in a folder or an object store.

`model` says what is in it, and needs nothing else; all other modules need the extra `archive`.
"""
