"""What writes the generated parts of docs/: `python -m tools`, which `make docs` calls."""
