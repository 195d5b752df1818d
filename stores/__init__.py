"""Stores: how versions are read and deleted, through the Prefect API or in the database behind it. No Prefect task in here.

- `store`: the protocol that both stores implement.
- `api`: the store that uses the Prefect API; `connection` sends its requests, `concurrency` decides how many at once.
- `database`: the store that uses PostgreSQL or SQLite; `schema` declares the tables.
"""
