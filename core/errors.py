"""Errors that the command line prints as one sentence: mistakes of the user (exit code 2) and faults of the machine (1)."""


class UserError(ValueError):
    """A mistake in a config, a path or a picture. The message is one sentence that names the mistake and its remedy."""


class MachineError(UserError):
    """A fault of the machine, such as a full disk or too little memory, that no config causes. One sentence with a remedy."""
