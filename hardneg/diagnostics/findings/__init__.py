"""What is wrong, in words: findings, the rules that find them, and their thresholds."""
