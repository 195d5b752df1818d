"""Renew the generated parts of the pages: the tables of the reference, and the verdicts of the cookbook."""

from pathlib import Path

from tools.cookbook import renew_verdicts
from tools.reference import renew_tables

DOCS = Path(__file__).parents[1] / "docs"

if __name__ == "__main__":
    for name, renew in (("reference.md", renew_tables), ("cookbook.md", renew_verdicts)):
        page = DOCS / name
        page.write_text(renew(page.read_text(encoding="utf-8")), encoding="utf-8")
