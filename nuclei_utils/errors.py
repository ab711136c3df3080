"""The error and the warning that a user can fix: their messages say what to do."""


class NucleiError(ValueError):
    """Base class of all errors that a user can put right.

    The message names the file, the problem, the expected content and a solution.
    """


class LabelWarning(UserWarning):
    """Warning about masks that are empty or overlap.

    The label map differs from such mask files.
    """
