"""One file a format: from what people have to a `Builder`."""
