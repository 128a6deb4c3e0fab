"""Faults: damaged and hostile inputs, made by seeded mutators. `python -m tests.faults.fuzz` reads many of them."""
