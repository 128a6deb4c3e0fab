"""HTML reports: each is one self-contained file with findings, charts, numbers and example queries."""
