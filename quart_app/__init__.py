"""The services: HTTP around the mesh."""
