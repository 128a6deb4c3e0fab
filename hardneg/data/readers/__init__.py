"""One module per file format. Each reads its format into a `Builder`."""
