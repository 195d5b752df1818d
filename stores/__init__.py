"""Stores: how versions are read and deleted, through the Prefect API or in the database behind it. No Prefect task in here.

- `store`: the protocol that both stores implement.
- `server`: the Prefect server itself, whichever store is used: its clock, version, expiry, flow runs, and our own artifacts.
- `api`: the store that uses the Prefect API; `paging` lists and counts, `rows` reads what is listed.
- `connection` sends the requests of both, `concurrency` decides how many at once.
- `database`: the store that uses PostgreSQL or SQLite; `identity` checks that it is the server's.
- `transactions` runs the transactions of the database; `queries` reads in one, `changes` deletes and repairs; `schema`
  declares the tables, `ids` packs what there are millions of.
"""
