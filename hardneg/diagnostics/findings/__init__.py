"""Findings (problems of the negatives, in words), the rules that report them, and the thresholds of the rules."""
