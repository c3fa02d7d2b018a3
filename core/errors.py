"""The error for mistakes of the user: the command line prints it as one sentence and exits with 2."""


class UserError(ValueError):
    """A mistake in a config, a path or a picture. The message is one sentence that names the mistake and its remedy."""
