"""The errors a user can meet. Each message says what is wrong, where, and how to fix it, in one line."""


class CmtvisionError(Exception):
    """Base of every error that bad input causes; the command line prints it without a traceback and exits with 2."""


class ConfigError(CmtvisionError):
    """A recipe, an option or a name that cannot be used."""


class DataError(CmtvisionError):
    """Images, labels or folders that cannot be used."""


class CheckpointError(CmtvisionError):
    """Weights or an artefact that cannot be read, written, or do not fit the model."""


class ExportError(CmtvisionError):
    """An export that failed or that differs from the model it was made from."""
