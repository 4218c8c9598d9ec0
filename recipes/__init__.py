"""One folder per experiment."""
