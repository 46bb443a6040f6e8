"""What a machine's processor is called, even where torch is broken."""

import platform
from pathlib import Path


def processor() -> str:
    """The name of the processor, "unknown" where nobody says: Linux has it in a file, other systems tell Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or "unknown"
