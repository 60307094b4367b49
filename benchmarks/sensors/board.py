"""What is known of an edge board beyond its CPU: SoC, L4T and JetPack, CUDA, TensorRT, power mode, clocks' limits.

Read from files where files say it; what is not there is "not measured" with the reason.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from leanear.benchmarks.sensors.readings import Ask, not_measured, run_program, text_in

DEVICE_TREE = "proc/device-tree/compatible"
DPKG_STATUS = "var/lib/dpkg/status"
TENSORRT_PACKAGES = ("tensorrt", "libnvinfer11", "libnvinfer10", "libnvinfer8")
CUDA_VERSION = "usr/local/cuda/version.json"


def board_facts(root: Path = Path("/"), ask: Ask = run_program) -> dict[str, Any]:
    """Facts of the board; root: in place of "/"; ask: what a program says.

    L4T and JetPack are facts of a Jetson alone, CUDA and TensorRT of that and of a machine with NVIDIA's driver.
    """
    packages = _packages(root, ("nvidia-jetpack", "nvidia-l4t-core", *TENSORRT_PACKAGES))
    jetson = (root / "etc/nv_tegra_release").exists() or "nvidia-l4t-core" in packages
    facts: dict[str, Any] = {
        "power_mode": _power_mode(root, ask, jetson),
        "clock_limits": _clock_limits(root),
        "firmware": _firmware(root, ask),
    }
    if (root / DEVICE_TREE).exists():
        facts["soc"] = _soc(root)
    if jetson:
        facts["l4t"] = _l4t(root, packages)
        facts["jetpack"] = packages.get("nvidia-jetpack") or not_measured("the package nvidia-jetpack is not installed")
    driver = _driver(root)
    if jetson or driver is not None:
        facts["nvidia_driver"] = driver or not_measured("no NVIDIA driver is loaded")
        facts["cuda"] = _cuda(root)
        tensorrt = next((packages[name] for name in TENSORRT_PACKAGES if name in packages), None)
        facts["tensorrt"] = tensorrt or not_measured("none of its packages is installed")
    return facts


def _packages(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Version by name of those of `names` that dpkg has installed."""
    found = {}
    for entry in text_in(root / DPKG_STATUS).split("\n\n"):
        name = re.match(r"Package: (\S+)", entry.lstrip("\n"))
        if name and name.group(1) in names and re.search(r"^Status: .* installed$", entry, re.MULTILINE):
            version = re.search(r"^Version: (\S+)", entry, re.MULTILINE)
            if version:
                found[name.group(1)] = version.group(1)
    return found


def _soc(root: Path) -> Any:
    names = [name for name in text_in(root / DEVICE_TREE).split("\0") if name]
    return names[-1] if names else not_measured(f"/{DEVICE_TREE} is empty")


def _l4t(root: Path, packages: dict[str, str]) -> Any:
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text_in(root / "etc/nv_tegra_release"))
    if found:
        return f"{found.group(1)}.{found.group(2)}"
    return packages.get("nvidia-l4t-core") or not_measured("/etc/nv_tegra_release does not say")


def _cuda(root: Path) -> Any:
    try:
        return str(json.loads(text_in(root / CUDA_VERSION))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        pass
    found = re.search(r"CUDA Version ([\d.]+)", text_in(root / "usr/local/cuda/version.txt"))
    return found.group(1) if found else not_measured("no /usr/local/cuda")


def _driver(root: Path) -> str | None:
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text_in(root / "proc/driver/nvidia/version"))
    return found.group(1) if found else None


def _power_mode(root: Path, ask: Ask, jetson: bool) -> Any:
    if jetson:
        found = re.search(r"NV Power Mode: (\S+)\s+(\d+)", ask(["nvpmodel", "-q"]) or "")
        if found:
            return f"{found.group(1)} ({found.group(2)})"
        number = re.search(r"pmode:0*(\d+)", text_in(root / "var/lib/nvpmodel/status"))
        if number:
            return f"mode {number.group(1)}"
        return not_measured("nvpmodel does not say")
    profile = text_in(root / "sys/firmware/acpi/platform_profile")
    return profile or not_measured("neither nvpmodel nor an ACPI platform profile")


def _clock_limits(root: Path) -> Any:
    """Lowest and highest clock that each group of cores may have now; equal ones are locked."""
    limits = {}
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        low, high = text_in(policy / "scaling_min_freq"), text_in(policy / "scaling_max_freq")
        if low.isdigit() and high.isdigit():
            limits[f"cpu {text_in(policy / 'affected_cpus') or policy.name}"] = (
                f"{int(low) // 1000} to {int(high) // 1000} MHz"
            )
    return limits or not_measured("the kernel shows no cpufreq")


def _firmware(root: Path, ask: Ask) -> Any:
    """The firmware of a Pi, or the BIOS."""
    said = ask(["vcgencmd", "version"])
    if said:
        return " ".join(said.split())[:120]
    return text_in(root / "sys/class/dmi/id/bios_version") or not_measured("neither vcgencmd nor a DMI table")
