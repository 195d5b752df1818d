"""Renew the generated parts of the pages: the tables of the reference, the verdicts of the cookbook, the simulations."""

from pathlib import Path

from tools.cookbook import renew_verdicts
from tools.reference import renew_tables
from tools.simulations import renew_simulations

DOCS = Path(__file__).parents[1] / "docs"

if __name__ == "__main__":
    pages = {"reference.md": renew_tables, "cookbook.md": renew_verdicts, "simulate.md": renew_simulations}
    for name, renew in pages.items():
        page = DOCS / name
        page.write_text(renew(page.read_text(encoding="utf-8")), encoding="utf-8")
