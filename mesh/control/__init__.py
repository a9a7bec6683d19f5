"""What an operator does to a running mesh, and how one looks at its requests."""
