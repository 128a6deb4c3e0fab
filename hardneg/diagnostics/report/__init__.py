"""One self-contained HTML file: findings, charts, numbers, and queries to look at."""
