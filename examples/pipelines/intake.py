"""Take in a delivery of images from Python: the folder to train on is the delivery itself, or a cleaned copy of it.

    python intake.py DELIVERY CLEAN

Exit 0 with a folder on stdout, 2 without one. The report stays beside CLEAN.
"""

import secrets
import sys
from pathlib import Path

import advrbd
from advrbd.reports.tables import render


def take_in(delivery: Path, clean: Path) -> Path:
    """The folder to train on. Raises ``AdvrbdError`` where nothing is fit for that."""
    config = advrbd.Config(seed=secrets.randbelow(2**31))  # whoever made it may have tried what the default one finds
    report = advrbd.scan(delivery, config)
    clean.with_name(f"{clean.name}.report.json").write_bytes(render(report, "json"))
    if report.unread or report.unexamined:
        raise advrbd.AdvrbdError(f"{len(report.unread)} files and {len(report.unexamined)} classes are unexamined")
    try:
        report.raise_for_suspects()
    except advrbd.SuspectsFound as found:
        print(f"{found}; cleaning", file=sys.stderr)
        advrbd.clean(delivery, clean, report=report, strict=True)
        return clean
    return delivery


def main() -> int:
    try:
        print(take_in(Path(sys.argv[1]), Path(sys.argv[2])))
    except advrbd.AdvrbdError as error:
        print(f"not taken in: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
