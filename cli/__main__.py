"""Runs the command line for `python -m hardneg_cli` and `torchrun -m hardneg_cli`."""

from .main import main

main()
