"""File handling: atomic writes, protection of the user's files, and locks on folders."""
