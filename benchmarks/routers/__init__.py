"""Other routers, measured beside ours: each runs in a virtual environment of its own."""
