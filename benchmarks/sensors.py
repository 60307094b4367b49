"""Temperature, clocks, power and free memory while something runs: what the device shows, about once a second.

Each reading is named with its source. What a device does not show is "not measured", with the reason, and never 0.
Readers take a root folder in place of "/", and `ask` in place of running a program.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

KINDS = (
    "temperature_c",
    "clock_mhz",
    "power_w",
    "energy_j",
    "memory_available_bytes",
    "cooling_state",
    "throttle_count",
)
INTERVAL_S = 1.0
ASK_LIMIT_S = 5.0
ABSOLUTE_ZERO_C, HOTTEST_C = -60.0, 250.0  # beyond these a sensor is switched off or broken
BATTERY = re.compile(r"^(bat|ac|adp|ucsi|hidpp|cmb|sbs|bq2|max17|pisugar)", re.IGNORECASE)
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # of a whole module, where a board has such a rail
FIXED_ZONE = re.compile(r"PMIC", re.IGNORECASE)  # on a Jetson Nano a constant, 50 or 100 degrees
JETSON_GPU = re.compile(r"(gpu|ga10b|gv11b|gp10b|gm20b|gb10b)", re.IGNORECASE)
PI_FLAGS = {0: "under-voltage", 1: "ARM frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI_SINCE_BOOT = 16
CLOCK_FALL = 0.9
LEAST_TICKS = 3
CONTROLLED = re.compile(r"cpufreq|cpu-|processor|devfreq|gpu|soctherm|thermal-cpufreq", re.IGNORECASE)

Ask = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True)
class Sensor:
    """One thing that can be read. kind: one of KINDS; source: the file or program; read: its value now, or None."""

    kind: str
    name: str
    source: str
    read: Callable[[], "float | None"]


@dataclass(frozen=True)
class Found:
    """The sensors of a device, and the reason for each kind that it has none of."""

    sensors: tuple[Sensor, ...]
    missing: dict[str, str]

    def of(self, kind: str) -> list[Sensor]:
        """The sensors of one kind."""
        return [sensor for sensor in self.sensors if sensor.kind == kind]


def run_program(command: Sequence[str]) -> str | None:
    """What a program writes, or None where there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        asked = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout if asked.returncode == 0 else None


def find_sensors(root: Path = Path("/"), ask: Ask = run_program) -> Found:
    """What this device shows of itself."""
    on_a_pi = ask(["vcgencmd", "measure_temp"]) is not None
    sensors = [
        *_temperatures(root),
        *_clocks(root),
        *_powers(root),
        *_energies(root),
        *_memory(root),
        *_cooling(root),
        *_throttle_counts(root),
    ]
    if on_a_pi:
        sensors += _pi_sensors(ask, {sensor.kind for sensor in sensors})
    kinds = {sensor.kind for sensor in sensors}
    missing = {kind: _why_missing(kind, root) for kind in KINDS if kind not in kinds}
    return Found(tuple(sensors), missing)


# Files of the kernel


def _number(path: Path) -> float | None:
    """The number that a file of the kernel shows now."""
    try:
        return float(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _scaled(path: Path, factor: float, lowest: float = -1e18, highest: float = 1e18) -> Callable[[], float | None]:
    def read() -> float | None:
        value = _number(path)
        return None if value is None or not lowest <= value * factor <= highest else value * factor

    return read


def _sensor(kind: str, name: str, path: Path, root: Path, read: Callable[[], float | None]) -> list[Sensor]:
    """The sensor, if it can be read now."""
    return [Sensor(kind, name, _shown(path, root), read)] if read() is not None else []


def _shown(path: Path, root: Path) -> str:
    return "/" + path.relative_to(root).as_posix()


def _hwmon(root: Path) -> list[tuple[Path, str]]:
    """Folder and name of each monitoring chip that is not a battery or its charger."""
    found = [(folder, _text(folder / "name")) for folder in sorted((root / "sys/class/hwmon").glob("hwmon*"))]
    return [(folder, name) for folder, name in found if name and not BATTERY.match(name)]


def _temperatures(root: Path) -> list[Sensor]:
    sensors: list[Sensor] = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_by_number):
        kind = _text(zone / "type")
        if FIXED_ZONE.match(kind):
            continue
        name = f"{zone.name} {kind}".strip()
        read = _scaled(zone / "temp", 1e-3, ABSOLUTE_ZERO_C, HOTTEST_C)
        sensors += _sensor("temperature_c", name, zone / "temp", root, read)
    for folder, chip in _hwmon(root):
        for path in sorted(folder.glob("temp*_input"), key=_by_number):
            label = _text(path.with_name(path.name.replace("_input", "_label"))) or path.name[: -len("_input")]
            read = _scaled(path, 1e-3, ABSOLUTE_ZERO_C, HOTTEST_C)
            sensors += _sensor("temperature_c", f"{chip} {label}", path, root, read)
    return sensors


def _clocks(root: Path) -> list[Sensor]:
    sensors: list[Sensor] = []
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"), key=_by_number):
        cores = _text(policy / "affected_cpus") or policy.name
        read = _scaled(policy / "scaling_cur_freq", 1e-3, 0.001)
        sensors += _sensor("clock_mhz", f"cpu {cores}", policy / "scaling_cur_freq", root, read)
    if not sensors:
        path = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
        sensors += _sensor("clock_mhz", "cpu 0", path, root, _scaled(path, 1e-3, 0.001))
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if JETSON_GPU.search(folder.name):
            read = _scaled(folder / "cur_freq", 1e-6, 0.001)
            sensors += _sensor("clock_mhz", f"gpu {folder.name}", folder / "cur_freq", root, read)
    return sensors


def _powers(root: Path) -> list[Sensor]:
    """Rails: volts times amperes of an INA3221, or watts where a chip gives them; and the one that is the total."""
    rails: list[Sensor] = []
    for folder, chip in _hwmon(root):
        for path in sorted(folder.glob("in*_label"), key=_by_number):
            number = re.sub(r"\D", "", path.name)
            label = _text(path)
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            if label and label != "NC" and not label.startswith("sum") and amperes.exists():
                rails += _sensor("power_w", f"{label} ({chip})", amperes, root, _product(volts, amperes))
        for path in sorted(folder.glob("power*_input"), key=_by_number) + sorted(
            folder.glob("power*_average"), key=_by_number
        ):
            label = (
                _text(path.with_name(re.sub(r"_(input|average)$", "_label", path.name))) or path.name.partition("_")[0]
            )
            rails += _sensor("power_w", f"{label} ({chip})", path, root, _scaled(path, 1e-6, 0.0))
    for folder in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*")):  # JetPack 4
        for path in sorted(folder.glob("rail_name_*"), key=_by_number):
            watts = folder / f"in_power{re.sub(r'[^0-9]', '', path.name)}_input"
            if _text(path) not in ("", "NC"):
                rails += _sensor("power_w", f"{_text(path)} (ina3221x)", watts, root, _scaled(watts, 1e-3, 0.0))
    return rails


def _product(volts: Path, amperes: Path) -> Callable[[], float | None]:
    """Watts from files that show millivolts and milliamperes."""

    def read() -> float | None:
        v, a = _number(volts), _number(amperes)
        return None if v is None or a is None or v < 0 or a < 0 else v * a * 1e-6

    return read


def _energies(root: Path) -> list[Sensor]:
    """Energy counters of x86 packages and their memory (RAPL), which run on past their largest value."""
    sensors: list[Sensor] = []
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = _text(zone / "name")
        if name.startswith(("package", "psys", "dram")):
            most = _number(zone / "max_energy_range_uj")
            read = _unwrapped(zone / "energy_uj", most)
            sensors += _sensor("energy_j", f"{name} (RAPL, {zone.name})", zone / "energy_uj", root, read)
    return sensors


def _unwrapped(path: Path, most: float | None) -> Callable[[], float | None]:
    """Joules of a counter in microjoules that starts again from 0 above `most`."""
    laps, earlier = 0, 0.0

    def read() -> float | None:
        nonlocal laps, earlier
        value = _number(path)
        if value is None:
            return None
        if value < earlier:
            laps += 1
        earlier = value
        return (value + laps * (most or 0.0)) * 1e-6

    return read


def _memory(root: Path) -> list[Sensor]:
    path = root / "proc/meminfo"

    def read() -> float | None:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(path), re.MULTILINE)
        return float(found.group(1)) * 1024 if found else None

    return _sensor("memory_available_bytes", "available", path, root, read)


def _cooling(root: Path) -> list[Sensor]:
    """How far the kernel holds a processor back because it is hot: 0 is not at all."""
    sensors: list[Sensor] = []
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*"), key=_by_number):
        name = _text(folder / "type")
        if CONTROLLED.search(name):
            path = folder / "cur_state"
            sensors += _sensor("cooling_state", f"{folder.name} {name}", path, root, _scaled(path, 1.0, 0.0))
    return sensors


def _throttle_counts(root: Path) -> list[Sensor]:
    """Counters that go up whenever hardware holds itself back."""
    paths = [
        (root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "core 0, heat"),
        (root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "package, heat"),
    ]
    for folder, chip in _hwmon(root):
        if chip == "soctherm_oc":
            paths += [
                (path, f"over-current {path.name}") for path in sorted(folder.glob("oc*_event_cnt"), key=_by_number)
            ]
    return [
        sensor
        for path, name in paths
        for sensor in _sensor("throttle_count", name, path, root, _scaled(path, 1.0, 0.0))
    ]


def _by_number(path: Path) -> tuple[int, str]:
    found = re.search(r"\d+", path.name)
    return (int(found.group()) if found else -1, path.name)


# Programs


def _pi_sensors(ask: Ask, there: set[str]) -> list[Sensor]:
    """What a Raspberry Pi's firmware tells through vcgencmd: what the kernel does not, and whether it is held back."""

    def flags() -> float | None:
        found = re.search(r"throttled=(0x[0-9a-fA-F]+)", ask(["vcgencmd", "get_throttled"]) or "")
        return None if found is None else float(int(found.group(1), 16))

    def temperature() -> float | None:
        found = re.search(r"temp=([\d.]+)", ask(["vcgencmd", "measure_temp"]) or "")
        return None if found is None else float(found.group(1))

    def clock() -> float | None:
        found = re.search(r"=(\d+)\s*$", ask(["vcgencmd", "measure_clock", "arm"]) or "")
        return None if found is None else int(found.group(1)) / 1e6

    def power() -> float | None:
        return parse_pmic(ask(["vcgencmd", "pmic_read_adc"]) or "")

    offered = [
        Sensor("throttle_flags", "firmware", "vcgencmd get_throttled", flags),
        Sensor("temperature_c", "firmware", "vcgencmd measure_temp", temperature),
        Sensor("clock_mhz", "arm", "vcgencmd measure_clock arm", clock),
        Sensor("power_w", "sum of the PMIC's rails", "vcgencmd pmic_read_adc", power),
    ]
    return [sensor for sensor in offered if sensor.kind not in there and sensor.read() is not None]


def parse_pmic(text: str) -> float | None:
    """Watts, the sum over rails of volts times amperes, in what `vcgencmd pmic_read_adc` of a Pi 5 prints."""
    amperes = dict(re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", text))
    volts = dict(re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", text))
    both = [float(amperes[rail]) * float(volts[rail]) for rail in amperes if rail in volts]
    return sum(both) if both else None


def parse_tegrastats(line: str) -> dict[str, dict[str, float]]:
    """What one line of `tegrastats` says, by kind and name; sensors that are switched off are left out."""
    said: dict[str, dict[str, float]] = {
        "temperature_c": {},
        "clock_mhz": {},
        "power_w": {},
        "memory_available_bytes": {},
    }
    for name, value in re.findall(r"\b([A-Za-z][\w-]*)@(-?[\d.]+)C\b", line):
        if ABSOLUTE_ZERO_C <= float(value) <= HOTTEST_C and not FIXED_ZONE.match(name):
            said["temperature_c"][name] = float(value)
    cpus = re.search(r"CPU \[([^\]]*)\]", line)
    running = re.findall(r"\d+%@(\d+)", cpus.group(1)) if cpus else []
    if running:
        said["clock_mhz"]["cpu"] = max(float(clock) for clock in running)
    gpu = re.search(r"GR3D_FREQ \d+%@\[?(\d+)", line)
    if gpu:
        said["clock_mhz"]["gpu"] = float(gpu.group(1))
    for name, now in re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line):
        said["power_w"][name] = int(now) / 1e3
    memory = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    if memory:
        said["memory_available_bytes"]["available"] = (int(memory.group(2)) - int(memory.group(1))) * 2.0**20
    return said


class Tegrastats:
    """The last line that `tegrastats` printed, read in the background until `close`."""

    def __init__(self, program: str, interval_ms: int = 500) -> None:
        self._process = subprocess.Popen(
            [program, "--interval", str(interval_ms)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._said: dict[str, dict[str, float]] = {}
        self._first = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said = parse_tegrastats(line)
            self._first.set()
        self._said = {}

    def sensors(self, there: set[str]) -> list[Sensor]:
        """A sensor for each reading of a kind that is not in `there`."""
        self._first.wait(ASK_LIMIT_S)
        return [
            Sensor(kind, name, "tegrastats", self._reader(kind, name))
            for kind, readings in self._said.items()
            if kind not in there
            for name in readings
        ]

    def _reader(self, kind: str, name: str) -> Callable[[], float | None]:
        return lambda: self._said.get(kind, {}).get(name)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()


def _why_missing(kind: str, root: Path) -> str:
    if kind == "energy_j":
        counters = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if counters:
            return f"{_shown(counters[0] / 'energy_uj', root)} is for root alone; run as root, or chmod a+r it"
        return "no energy counter (RAPL) in /sys/class/powercap"
    return {
        "temperature_c": "no thermal zone and no temperature of a monitoring chip in /sys",
        "clock_mhz": "the kernel shows no cpufreq",
        "power_w": "no power rail (INA3221 or another hwmon chip), no tegrastats, no vcgencmd pmic_read_adc",
        "memory_available_bytes": "/proc/meminfo has no MemAvailable",
        "cooling_state": "no cooling device of a processor in /sys/class/thermal",
        "throttle_count": "no counter of throttling in /sys",
    }[kind]


# Recording


class Recorder:
    """Reads every sensor once an interval in a thread, from `with` until its end; `record()` is what it read.

    Times are those of `time.monotonic()`, which on Linux is one clock for all processes.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        interval_s: float = INTERVAL_S,
        ask: Ask = run_program,
        tegrastats: str | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._program = tegrastats if tegrastats is not None else shutil.which("tegrastats")
        self._root, self._ask = root, ask
        self._ticks: list[tuple[float, list[float | None]]] = []
        self._sensors: tuple[Sensor, ...] = ()
        self._missing: dict[str, str] = {}
        self._stop = threading.Event()
        self._cpu_s = 0.0

    def __enter__(self) -> Recorder:
        found = find_sensors(self._root, self._ask)
        self._sensors, self._missing = found.sensors, dict(found.missing)
        self._stream = None
        if self._program:
            with contextlib.suppress(OSError):
                self._stream = Tegrastats(self._program, int(1000 * min(self._interval_s, 0.5)))
                more = self._stream.sensors({sensor.kind for sensor in self._sensors})
                self._sensors += tuple(more)
                for sensor in more:
                    self._missing.pop(sensor.kind, None)
        self._tick()
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tick()
        if self._stream is not None:
            self._stream.close()

    def _run(self) -> None:
        before = time.thread_time()
        while not self._stop.wait(self._interval_s):
            self._tick()
        self._cpu_s = time.thread_time() - before

    def _tick(self) -> None:
        self._ticks.append((time.monotonic(), [sensor.read() for sensor in self._sensors]))

    def record(self) -> dict[str, Any]:
        """What was read: {seconds since the first reading, series by kind and name, sources, why kinds are missing}."""
        start = self._ticks[0][0] if self._ticks else 0.0
        series: dict[str, dict[str, list[float | None]]] = {}
        sources: dict[str, dict[str, str]] = {}
        for place, sensor in enumerate(self._sensors):
            values = [values[place] for _, values in self._ticks]
            series.setdefault(sensor.kind, {})[sensor.name] = [None if v is None else round(v, 4) for v in values]
            sources.setdefault(sensor.kind, {})[sensor.name] = sensor.source
        return {
            # To the microsecond: rounded more, the last reading would seem to come before the work that it closes.
            "start_monotonic_s": round(start, 6),
            "interval_s": self._interval_s,
            "seconds": [round(moment - start, 6) for moment, _ in self._ticks],
            "series": series,
            "sources": sources,
            "not_measured": dict(self._missing),
            "sampling_cpu_s": round(self._cpu_s, 4),
        }


# What a record says


def throttling(record: dict[str, Any]) -> dict[str, Any]:
    """Whether the device was held back while it was recorded: {"verdict", "reasons", "looked_at"}.

    verdict: "throttled", "no sign of it", or "not measured" where nothing that would show it was there.
    """
    series = record["series"]
    reasons, looked_at = [], []
    for name, values in series.get("throttle_count", {}).items():
        known = _known(values)
        looked_at.append(name)
        if len(known) > 1 and known[-1] > known[0]:
            reasons.append(f"{name}: the counter went up by {known[-1] - known[0]:.0f}")
    for name, values in series.get("cooling_state", {}).items():
        known = _known(values)
        looked_at.append(name)
        held = sum(value > 0 for value in known)
        if held:
            reasons.append(f"{name}: held back in {held} of {len(known)} readings")
    for values in series.get("throttle_flags", {}).values():
        looked_at.append("vcgencmd get_throttled")
        now = 0
        for value in _known(values):
            now |= int(value)
        said = [text for bit, text in PI_FLAGS.items() if now >> bit & 1]
        if said:
            reasons.append(f"firmware: {', '.join(said)}")
    reasons += _fallen_clocks(series, looked_at)
    if not looked_at:
        return {"verdict": "not measured", "reasons": ["the device shows neither clocks nor counters"], "looked_at": []}
    return {
        "verdict": "throttled" if reasons else "no sign of it",
        "reasons": reasons,
        "looked_at": sorted(set(looked_at)),
    }


def _fallen_clocks(series: dict[str, Any], looked_at: list[str]) -> list[str]:
    """Clocks whose last third lies below their first third while it became warmer."""
    reasons = []
    for name, values in series.get("clock_mhz", {}).items():
        known = _known(values)
        if len(known) < 3 * LEAST_TICKS:
            continue
        looked_at.append(f"clock of {name}")
        third = len(known) // 3
        first, last = _median(known[:third]), _median(known[-third:])
        if last < CLOCK_FALL * first and _became_warmer(series):
            reasons.append(f"clock of {name}: from {first:.0f} to {last:.0f} MHz while it became warmer")
    return reasons


def _became_warmer(series: dict[str, Any]) -> bool:
    temperatures = [_known(values) for values in series.get("temperature_c", {}).values()]
    return any(len(known) > 1 and max(known[len(known) // 2 :]) > known[0] + 1.0 for known in temperatures)


def between(record: dict[str, Any], start_s: float, end_s: float) -> dict[str, Any]:
    """The part of a record that lies between two moments of `time.monotonic()`."""
    first = record["start_monotonic_s"]
    kept = [place for place, second in enumerate(record["seconds"]) if start_s <= first + second <= end_s]
    series = {
        kind: {name: [values[place] for place in kept] for name, values in readings.items()}
        for kind, readings in record["series"].items()
    }
    return {**record, "seconds": [record["seconds"][place] for place in kept], "series": series}


def energy(record: dict[str, Any], start_s: float, end_s: float) -> dict[str, Any]:
    """Joules and mean watts between two moments of `time.monotonic()`, by the sensor that sees most of the device.

    {"status": "ok", "joules", "mean_w", "sensor", "readings"} or {"status": "not measured", "reason"}.
    """
    moments = [record["start_monotonic_s"] + second for second in record["seconds"]]
    counters = record["series"].get("energy_j", {})
    if counters:
        names = _widest_counters(list(counters))
        values = [_sum_at(counters, names, place) for place in range(len(moments))]
        joules = _difference(moments, values, start_s, end_s)
        what = " + ".join(names)
    else:
        rails = record["series"].get("power_w", {})
        if not rails:
            return {"status": "not measured", "reason": record["not_measured"].get("power_w", "no power sensor")}
        names, what = _total_rail(list(rails))
        values = [_sum_at(rails, names, place) for place in range(len(moments))]
        joules = _integral(moments, values, start_s, end_s)
    inside = sum(start_s <= moment <= end_s and value is not None for moment, value in zip(moments, values))
    if joules is None or inside < LEAST_TICKS or end_s <= start_s:
        return {"status": "not measured", "reason": f"{what}: {inside} readings in {end_s - start_s:.1f} s are too few"}
    return {
        "status": "ok",
        "joules": round(joules, 4),
        "mean_w": round(joules / (end_s - start_s), 4),
        "sensor": what,
        "readings": inside,
    }


def _widest_counters(names: list[str]) -> list[str]:
    """The platform's counter where there is one, and else those of the packages and of their memory."""
    platform = [name for name in names if name.startswith("psys")]
    return platform or names


def _total_rail(names: list[str]) -> tuple[list[str], str]:
    """The rails whose sum is the device, and how that is called."""
    for total in TOTAL_RAILS:
        for name in names:
            if name.partition(" ")[0] == total:
                return [name], f"{name}, the whole module"
    if len(names) == 1:
        return names, names[0]
    return names, "sum of " + " + ".join(names)


def _sum_at(series: dict[str, list[float | None]], names: list[str], place: int) -> float | None:
    values = [series[name][place] for name in names]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(names) else None


def _difference(moments: list[float], values: list[float | None], start_s: float, end_s: float) -> float | None:
    """How far a counter went between two moments, drawn straight between its readings."""
    start, end = _at(moments, values, start_s), _at(moments, values, end_s)
    return None if start is None or end is None else end - start


def _integral(moments: list[float], values: list[float | None], start_s: float, end_s: float) -> float | None:
    """The area under readings between two moments, drawn straight between them."""
    start, end = _at(moments, values, start_s), _at(moments, values, end_s)
    if start is None or end is None:
        return None
    inner = [(m, v) for m, v in zip(moments, values) if v is not None and start_s < m < end_s]
    points = [(start_s, start), *inner, (end_s, end)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))


def _at(moments: list[float], values: list[float | None], moment: float) -> float | None:
    """The value at a moment between two readings."""
    known = [(m, v) for m, v in zip(moments, values) if v is not None]
    for (before, low), (after, high) in zip(known, known[1:]):
        if before <= moment <= after:
            return low if after == before else low + (high - low) * (moment - before) / (after - before)
    return None


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def pi_flags(value: float) -> list[str]:
    """What a Pi's throttled flags say, of now and of the time since it started."""
    now = [text for bit, text in PI_FLAGS.items() if int(value) >> bit & 1]
    since = [f"{text} since it started" for bit, text in PI_FLAGS.items() if int(value) >> (bit + PI_SINCE_BOOT) & 1]
    return [*now, *since]
