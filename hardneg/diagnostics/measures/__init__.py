"""What is measured of negatives, one kind a file."""
