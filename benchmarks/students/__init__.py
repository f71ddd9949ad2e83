"""Other students on the same recorded calls, each run in the virtual environment of its own package."""
