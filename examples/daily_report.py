"""A report every day that expires by itself: python examples/daily_report.py."""

from datetime import UTC, datetime
from uuid import UUID

from prefect import flow, task
from prefect_artifact_retention import publish_markdown, publish_table


@task
def count_orders() -> list[dict[str, object]]:
    """Stand in for a query."""
    return [{"region": "north", "orders": 120}, {"region": "south", "orders": 80}]


@flow
def daily_report() -> UUID | None:
    """Publish the numbers for a month, and the headline of a year's end for good."""
    rows = count_orders()
    today = datetime.now(UTC).date()
    publish_table(rows, key="orders", description=f"Orders of {today}", ttl_days=30)
    total = sum(int(str(row["orders"])) for row in rows)
    is_last_of_year = (today.month, today.day) == (12, 31)
    return publish_markdown(f"# {total} orders on {today}", key="daily-report", ttl_days=30, hold=is_last_of_year)


if __name__ == "__main__":
    daily_report()
