"""The HTTP API for the life of seals, and for sealing and verifying in small numbers.

``openapi.yaml`` is its contract; ``README.md`` has the table of names.
"""
