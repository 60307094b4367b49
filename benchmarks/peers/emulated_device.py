"""A 64-bit ARM device in a folder: Debian's arm64 Python and aarch64 wheels, emulated by QEMU.

`make_device` puts the folder together: packages by apt-get (whose arm64 lists are kept apart from this machine's),
wheels by pip. Its Python is a shell script that starts the real one under `qemu-aarch64-static` as a Cortex-A72, the
core of a Raspberry Pi 4, and stands for it: processes that it starts are emulated too. What it computes is what such a
device computes. How long it takes says nothing about any device.

Run as a program it makes the device and prints its Python:

    python -m leanear.benchmarks.peers.emulated_device FOLDER
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "libcrypt1",
    "zlib1g",
)
WHEELS = ("numpy==2.2.6", "onnxruntime==1.23.2")  # onnxruntime 1.32.0 ends with an illegal instruction under emulation
EMULATOR = "qemu-aarch64-static"
PROCESSOR = "cortex-a72"


def missing() -> str | None:
    """None, or what this machine lacks for an emulated device, and how to install it."""
    for program in (EMULATOR, "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"there is no {program}; on Debian: apt-get install qemu-user-static"
    return None


def make_device(folder: Path) -> Path:
    """The device's Python, once its folder is complete; made only if it is not there yet.

    Raises:
        subprocess.CalledProcessError: a package or a wheel could not be fetched or unpacked.
    """
    root = folder / "root"
    python = root / "usr" / "bin" / "python3"
    if not python.exists():
        _unpack_packages(folder, root)
        _unpack_wheels(folder, root)
        _write_python(root, python)
    return python


def _unpack_packages(folder: Path, root: Path) -> None:
    debs, lists, cache = (
        folder / "debs",
        folder / "state" / "lists" / "partial",
        folder / "cache" / "archives" / "partial",
    )
    for each in (debs, lists, cache, root):
        each.mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    apt_get = [str(shutil.which("apt-get")), "-q", *options]
    subprocess.run([*apt_get, "update"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*apt_get, "download", *PACKAGES], check=True, cwd=debs, stdout=subprocess.DEVNULL)
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run([str(shutil.which("dpkg-deb")), "-x", str(deb), str(root)], check=True)


def _unpack_wheels(folder: Path, root: Path) -> None:
    wheels = folder / "wheels"
    command = [
        sys.executable,
        "-I",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(wheels),
    ]
    for platform in ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64"):
        command += ["--platform", platform]
    subprocess.run([*command, "--python-version", "3.11", *WHEELS], check=True)
    site = root / "usr" / "lib" / "python3" / "dist-packages"
    site.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def _write_python(root: Path, python: Path) -> None:
    """A script in the place of Python: Python finds its library beside it and starts further ones through it."""
    real = root / "usr" / "bin" / "python3.11"
    lines = ["#!/bin/sh", f'exec {shutil.which(EMULATOR)} -cpu {PROCESSOR} -L "{root}" -0 "{python}" "{real}" "$@"', ""]
    part = python.with_suffix(".part")
    part.write_text("\n".join(lines), encoding="utf-8")
    part.chmod(0o755)
    os.replace(part, python)


def main() -> int:
    """Make the device in the folder that is named, and print its Python."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the device is made; it is used again if it is there")
    folder = parser.parse_args().folder
    lack = missing()
    if lack is not None:
        print(lack, file=sys.stderr)
        return 2
    print(make_device(folder.resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
