"""The `hardneg` command, packaged as `hardneg_cli`: what people see; all work is in `hardneg`."""
