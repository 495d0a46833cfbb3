"""The command line: everything a person types."""
