"""Where versions live. No Prefect task in here.

`connection` is the way to a Prefect API: credentials, request rate, retries, errors in words. `api` asks it for collections,
versions and runs, and deletes.
"""
