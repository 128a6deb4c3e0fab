"""Findings: what is wrong, in words; the rules that find it, and their thresholds."""
