"""What is known of the machine that a measurement runs on."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, architecture, system; the frequency governor where the system tells it."""
    known = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    with contextlib.suppress(OSError):  # virtual machines and other systems do not say
        known["governor"] = GOVERNOR.read_text().strip()
    return known


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
