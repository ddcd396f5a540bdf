"""Errors a user can act on: each names the value, the allowed range and what to do."""


class OFAError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidArchitecture(OFAError, ValueError):
    """An architecture is not a member of its search space."""


class InvalidConfiguration(OFAError, ValueError):
    """A setting of a recipe, a space or a command is outside its allowed range."""


class MissingPart(InvalidConfiguration, AttributeError):
    """Something that only a whole network has was asked of a part of one; `hasattr` says that it is not there."""


class InfeasibleConstraint(OFAError, ValueError):
    """No architecture of the space meets a constraint, or none was found that does: the message says which.

    `smallest` is the least value within reach, or the least that was found, in the constraint's unit;
    `architecture` (an Architecture, where it is known) is what reaches it.
    """

    def __init__(self, message: str, smallest: float, architecture: object = None) -> None:
        super().__init__(message)
        self.smallest = smallest
        self.architecture = architecture


class OutOfDomain(OFAError, ValueError):
    """A table or a predictor was asked about something that it never saw."""


class IncompatibleCheckpoint(OFAError, ValueError):
    """A checkpoint is truncated, foreign, or belongs to another space."""


class DataUnavailable(OFAError, OSError):
    """A data set cannot be found, fetched or verified."""


class UnwritableOutput(OFAError, OSError):
    """A result cannot be written; what was saved before is untouched."""


class TrainingDiverged(OFAError, ArithmeticError):
    """The loss is no longer a number; the last checkpoint is untouched."""


class BrokenClaim(OFAError, AssertionError):
    """Something that a manifest says does not hold when it is repeated."""


class MeasurementPending(OFAError, RuntimeError):
    """A measurement is to be made on another machine; the message says what to carry there and back."""


def install(extra: str) -> str:
    """How to install one of our extras, for messages: no registry has this package."""
    from_wheel = f"pip install 'FILE.whl[{extra}]' from a wheel"
    return f"pip install -c constraints.txt -e '.[{extra}]' in a clone of onceforall, or {from_wheel}"
