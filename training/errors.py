"""The error a user can act on."""


class UsageError(Exception):
    """Something the user asked for cannot be done; the message says what and how to put it right."""
