"""The errors a user can meet. Each message says what is wrong, where, and how to fix it, in one line."""


class CmtvisionError(Exception):
    """Base of every error that a user can act on; the command line prints it without a traceback and exits with 2."""


class ConfigError(CmtvisionError):
    """A recipe, an option or a name that cannot be used."""


class DataError(CmtvisionError):
    """Images, labels or folders that cannot be used."""


class CheckpointError(CmtvisionError):
    """Weights or an artefact that cannot be read, written, or do not fit the model."""


class ExportError(CmtvisionError):
    """An export that failed or that differs from the model it was made from; the command line exits with 1."""


def first_line(error: Exception) -> str:
    """The first line that an error says, shortened; 'no reason given' for one that says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]


def one_line(error: Exception) -> str:
    """Why something failed, in a line: our own message as it is, another one behind the error's name."""
    return first_line(error) if isinstance(error, CmtvisionError) else f"{type(error).__name__}: {first_line(error)}"
