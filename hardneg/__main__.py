"""Runs the command line for `python -m hardneg`."""

from hardneg_cli.main import main  # type: ignore[import-not-found, unused-ignore]

main()
