"""HTML reports: one self-contained file with findings, charts, numbers and example queries."""
