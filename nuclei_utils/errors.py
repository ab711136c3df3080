"""The error and the warning that a user can fix: their messages say what to do."""


class NucleiError(ValueError):
    """Base class of all errors that a user can fix.

    The message names the file, the problem, the expected content and a solution.
    """


class LabelWarning(UserWarning):
    """Warning about masks that are empty or overlap.

    The label map then differs from the mask files.
    """


def first_line(error: Exception) -> str:
    r"""Return the first line of an error's message, or its class.

    Keras and TensorFlow raise errors with many lines.

    Examples
    --------
    >>> first_line(ValueError("no memory\nDetails: ...")), first_line(KeyError())
    ('no memory', 'KeyError')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__
