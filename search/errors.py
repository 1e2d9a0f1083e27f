"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in a study file, a workload, a results folder or an option.

    The message is complete (place, rule, value; one line per mistake). The command line prints it
    without a traceback and exits with status 2.
    """


class UnfinishedError(Exception):
    """The work failed, and the same command tries again. Printed without a traceback, with exit status 1."""
