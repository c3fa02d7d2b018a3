"""The one error that is the user's to mend: the command line prints it as one sentence and exits with 2."""


class UserError(ValueError):
    """A mistake in what was given (a config, a path, a picture), said in one sentence with its remedy."""
