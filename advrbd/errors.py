"""Every exception that advrbd raises on purpose.

AdvrbdError                what was asked for can't be done; the message says what to do instead
├── DatasetError           the folder is missing, has no classes, too few images, ...
├── DecoderError           the processes that decode images can't be started
├── ModelError             an unknown model, or one that doesn't fit the images
│   └── DivergedError      a training whose loss, or a model whose answers, are no finite numbers
├── DeviceError            a device that isn't there, or has too little memory
│   └── PeerLostError      another process of the run ended before its end
├── ReportError            a report or a manifest that can't be read or doesn't belong to the folder
├── SettingsError          a settings file, a variable or an ignore file that can't be used
├── OutputError            a target that exists, overlaps the input or can't be written
├── WorkDirError           a work directory that is in use, or of another run
├── UntrustedError         what ``clean`` made can't be trusted fully, and that was asked for
├── DefenceError           a baseline defence without what it needs, such as trusted images
├── BenchmarkError         an experiment that makes no sense as it was asked for, or lacks a package
└── SuspectsFound          raised only by ``Report.raise_for_suspects()``
"""


class AdvrbdError(Exception):
    """Base of all errors that advrbd raises on purpose; the message is one line for the user."""


class DatasetError(AdvrbdError):
    """The folder can't be scanned as it is."""


class DecoderError(AdvrbdError):
    """The processes that decode images can't be started."""


class ModelError(AdvrbdError):
    """The model is unknown to timm or doesn't fit the images."""


class DivergedError(ModelError):
    """A training fell apart: the loss or what the model says are no finite numbers."""


class DeviceError(AdvrbdError):
    """The device that was asked for isn't there, or has too little memory."""


NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # on a GPU, a CPU, a CPU under Windows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch had no memory left. It has a type of its own for that on a GPU only, and isn't imported here."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


class PeerLostError(DeviceError):
    """Another process of the same run ended, so its share of the work is missing."""


class ReportError(AdvrbdError):
    """A report or a manifest can't be read or believed, or doesn't belong to this folder."""


class SettingsError(AdvrbdError):
    """A settings file, a variable of the environment or an ignore file can't be used."""


class OutputError(AdvrbdError):
    """A target exists already, overlaps the input, or can't be written."""


class WorkDirError(AdvrbdError):
    """A work directory is in use, or belongs to another run."""


class UntrustedError(AdvrbdError):
    """``clean`` with ``strict`` made something that can't be trusted fully."""


class DefenceError(AdvrbdError):
    """A baseline defence lacks what it needs."""


class BenchmarkError(AdvrbdError):
    """The experiment that was asked for makes no sense, or a package that it needs isn't installed."""


class SuspectsFound(AdvrbdError):
    """The report names suspected files (raised by ``Report.raise_for_suspects`` alone)."""
