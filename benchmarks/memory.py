"""The high-water mark of a process's memory (Linux; see `man 5 proc`)."""

from pathlib import Path


def forget_peak() -> None:
    """Start the process's high-water mark anew."""
    Path("/proc/self/clear_refs").write_text("5")


def process_peak_mb() -> float:
    """Return the most memory that the process took since `forget_peak`, in megabytes (1e6)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kibibytes) * 1024 / 1e6
