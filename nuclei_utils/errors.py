"""Errors and warnings about files that a user can put right."""


class NucleiError(ValueError):
    """A file or folder cannot be read without guessing. The message names the file and says what to do."""


class LabelWarning(UserWarning):
    """Labels were read, but not as they are in the files: some masks are empty or overlap."""
