"""Measurements of negatives, one kind per module."""
