"""The measurements of negatives, one kind per file."""
