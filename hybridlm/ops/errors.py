"""What keeps a path from being used."""


class Unavailable(Exception):
    """Why a path cannot be used here, in words for a user."""
