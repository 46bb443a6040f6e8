"""advrbd finds backdoor-poisoned images in a dataset and gives back a clean one.

    import advrbd
    report = advrbd.scan("./data")
    report.raise_for_suspects()

Importing the package doesn't import torch; the first scan or clean does.
"""

from typing import TYPE_CHECKING

from advrbd import errors
from advrbd.errors import AdvrbdError, SuspectsFound
from advrbd.version import __version__

if TYPE_CHECKING:
    from advrbd.config import Config
    from advrbd.model.saved import load_model
    from advrbd.pipeline import Cleaned, clean, scan
    from advrbd.reports.report import ClassVerdict, FileResult, Report
    from advrbd.verification import Verification, verify

_HOMES = {
    "Config": "advrbd.config",
    "load_model": "advrbd.model.saved",
    "Cleaned": "advrbd.pipeline",
    "clean": "advrbd.pipeline",
    "scan": "advrbd.pipeline",
    "ClassVerdict": "advrbd.reports.report",
    "FileResult": "advrbd.reports.report",
    "Report": "advrbd.reports.report",
    "Verification": "advrbd.verification",
    "verify": "advrbd.verification",
}

__all__ = [
    "AdvrbdError",
    "ClassVerdict",
    "Cleaned",
    "Config",
    "FileResult",
    "Report",
    "SuspectsFound",
    "Verification",
    "__version__",
    "clean",
    "errors",
    "load_model",
    "scan",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
