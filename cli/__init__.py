"""The command line of hardneg, packaged as `hardneg_cli`. It parses options and prints; `hardneg` does the work."""
