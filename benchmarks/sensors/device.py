"""What is known of the machine that measures; what cannot be read is said to be so, with the reason, and never is 0.

Of an edge board beyond its CPU: SoC, L4T and JetPack, CUDA, TensorRT, power mode, clocks' limits, from files where they
say it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

from leanear.benchmarks.sensors.readings import Ask, not_measured, run_program, text_in

DEVICE_TREE = "proc/device-tree/compatible"
DPKG_STATUS = "var/lib/dpkg/status"
TENSORRT_PACKAGES = ("tensorrt", "libnvinfer11", "libnvinfer10", "libnvinfer8")
CUDA_VERSION = "usr/local/cuda/version.json"
LIBRARIES = ("leanear", "numpy", "onnxruntime", "openvino")
INSTRUCTIONS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
BUSY_WINDOW_S = 0.5
X86 = ("x86_64", "i386", "i486", "i586", "i686", "AMD64")
CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"


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


def is_measured(value: Any) -> bool:
    """Whether a fact has a value, not the reason why it has none."""
    status = value.get("status") if isinstance(value, dict) else getattr(value, "status", None)
    return status != "not measured"


def device_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Facts that do not change while a benchmark runs: CPU, memory, system, Python and library versions.

    root: where /proc and /sys are looked for.
    """
    cpu = _cpu_info(root)
    return {
        "board": _board(root),
        **board_facts(root),
        "cpu": cpu["model"],
        "architecture": platform.machine() or not_measured("platform.machine() says nothing"),
        "cores_visible": os.cpu_count() or not_measured("os.cpu_count() says nothing"),
        "cores_usable": usable_cores(),
        "threads_per_core": cpu["threads_per_core"],
        "cpu_quota_cores": _cpu_quota(root),
        "instructions": cpu["instructions"],
        "memory_bytes": _memory_field(root, "MemTotal"),
        "swap_bytes": _memory_field(root, "SwapTotal"),
        "governor": _read(root, f"{CPUFREQ}/scaling_governor", "the kernel shows no cpufreq"),
        "frequency_max_khz": _read(root, f"{CPUFREQ}/cpuinfo_max_freq", "the kernel shows no cpufreq"),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _system_name(root),
        "virtual_machine": _virtual_machine(root),
        "container": _container(root),
        "emulation": _emulation(root),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def device_state(root: Path = Path("/")) -> dict[str, Any]:
    """Facts that change, for before and after a measurement: load, free memory, frequency, temperature.

    cpu_busy_share: of all cores, over half a second in which this process sleeps, so it is what others do.
    """
    return {
        "load_average_1_min": load_average(),
        "cpu_busy_share": _cpu_busy_share(root),
        "memory_available_bytes": _memory_field(root, "MemAvailable"),
        "frequency_khz": _read(root, f"{CPUFREQ}/scaling_cur_freq", "the kernel shows no cpufreq"),
        "temperature_c": _temperature(root),
    }


def device_name(facts: dict[str, Any]) -> str:
    """A short folder name for this machine: its board or CPU, and the cores that may be used."""
    name = facts["board"] if is_measured(facts["board"]) else facts["cpu"]
    if not is_measured(name):
        name = facts["architecture"] if is_measured(facts["architecture"]) else "device"
    text = re.sub(r"\((r|tm)\)|processor|cpu|@.*$", " ", str(name).lower())
    slug = re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "device"
    return f"{slug}-{facts['cores_usable']}-cores"


def _read(root: Path, name: str, reason: str) -> Any:
    try:
        text = (root / name).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return not_measured(reason)
    if not text:
        return not_measured(f"/{name} is empty")
    return int(text) if text.isdigit() else text


def _board(root: Path) -> Any:
    named = _read(root, "proc/device-tree/model", "no device tree")
    if is_measured(named):
        return named
    named = _read(root, "sys/class/dmi/id/product_name", "no DMI table")
    return named if is_measured(named) else not_measured("neither a device tree nor a DMI table names the board")


def _cpu_info(root: Path) -> dict[str, Any]:
    text = str(_read(root, "proc/cpuinfo", ""))
    first = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        first[key.strip()] = value.strip()
    model = first.get("model name") or first.get("Model") or first.get("Hardware") or ""
    flags = set((first.get("flags") or first.get("Features") or "").split())
    siblings, cores = first.get("siblings", ""), first.get("cpu cores", "")
    threads = int(siblings) // int(cores) if siblings.isdigit() and cores.isdigit() and int(cores) else None
    return {
        "model": model or not_measured("/proc/cpuinfo names no model"),
        "instructions": [name for name in INSTRUCTIONS if name in flags]
        or not_measured("/proc/cpuinfo lists no flags"),
        "threads_per_core": threads or not_measured("/proc/cpuinfo does not say"),
    }


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota(root: Path) -> Any:
    text = str(_read(root, "sys/fs/cgroup/cpu.max", ""))
    quota, _, period = text.partition(" ")
    if quota.isdigit() and period.isdigit():
        return round(int(quota) / int(period), 3)
    return "none" if quota == "max" else not_measured("no cgroup quota is visible")


def _memory_field(root: Path, field: str) -> Any:
    found = re.search(rf"^{field}:\s+(\d+) kB", str(_read(root, "proc/meminfo", "")), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else not_measured(f"/proc/meminfo has no {field}")


def load_average() -> Any:
    """The system's load average over one minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return not_measured("the system gives no load average")


def _cpu_busy_share(root: Path) -> Any:
    earlier = _cpu_ticks(root)
    if earlier is None:
        return not_measured("/proc/stat has no CPU times")
    time.sleep(BUSY_WINDOW_S)
    later = _cpu_ticks(root)
    if later is None or later[1] <= earlier[1]:
        return not_measured("/proc/stat does not advance")
    return round((later[0] - earlier[0]) / (later[1] - earlier[1]), 3)


def _cpu_ticks(root: Path) -> tuple[int, int] | None:
    """Ticks that all cores were busy, and all ticks, since the machine started."""
    found = re.match(r"cpu +([\d ]+)", str(_read(root, "proc/stat", "")))
    if not found:
        return None
    ticks = [int(text) for text in found.group(1).split()][:8]  # the rest, guest time, is counted in the first two
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def _system_name(root: Path) -> Any:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', str(_read(root, "etc/os-release", "")), re.MULTILINE)
    return found.group(1) if found else not_measured("/etc/os-release names no system")


def _virtual_machine(root: Path) -> Any:
    text = str(_read(root, "proc/cpuinfo", ""))
    if not re.search(r"^flags\s*:", text, re.MULTILINE):
        return not_measured("/proc/cpuinfo has no flags to tell by")
    return (
        "yes (hypervisor flag)"
        if re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE)
        else "no hypervisor flag"
    )


def _container(root: Path) -> str:
    for mark in (".dockerenv", "run/.containerenv"):
        if (root / mark).exists():
            return f"yes (/{mark})"
    return "no sign of one"


def _emulation(root: Path) -> str:
    """Whether this process is translated, instruction by instruction, from another kind of processor to this one."""
    machine = platform.machine()
    other = re.search(r"^vendor_id\s*:", str(_read(root, "proc/cpuinfo", "")), re.MULTILINE)
    if other and machine and machine not in X86:
        return f"yes: {machine} on an x86 processor, so no time that is measured here says anything of a real device"
    return "no sign of it"


def _temperature(root: Path) -> Any:
    readings = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, value = _read(zone, "type", ""), _read(zone, "temp", "")
        if isinstance(value, int):
            readings[f"{zone.name} {kind}" if isinstance(kind, str) else zone.name] = value / 1000
    return readings or not_measured("the kernel shows no thermal zone")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
