"""The door to a backend: the same for a notebook, a script and a test."""
