"""The kind of error that the command line shows as a line, not as a traceback."""


class InputError(ValueError):
    """A file, an option or a combination of them that cannot be used; the message names it and says why."""
