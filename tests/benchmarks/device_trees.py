"""What a Jetson, a Raspberry Pi and an x86 laptop show of themselves in /proc, /sys and /etc; made, after real ones."""

from __future__ import annotations

from pathlib import Path

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 2025\n"
)
DPKG = """Package: nvidia-jetpack
Status: install ok installed
Priority: standard
Version: 6.2.1+b38

Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: libnvinfer8
Status: deinstall ok config-files
Version: 8.6.2.3-1+cuda12.2

Package: nvidia-l4t-core
Status: install ok installed
Version: 36.4.3-20250107174145
"""
JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n",
    "proc/meminfo": "MemTotal:        7802792 kB\nMemAvailable:    5604000 kB\nSwapTotal: 3901392 kB\n",
    "etc/nv_tegra_release": RELEASE,
    "var/lib/dpkg/status": DPKG,
    "var/lib/nvpmodel/status": "pmode:0001\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/affected_cpus": "0 1 2 3\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48062\n",
    "sys/class/thermal/thermal_zone4/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone4/temp": "-256000\n",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone8/temp": "48625\n",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device9/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device9/cur_state": "3\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "920\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "4992\n",
    "sys/class/hwmon/hwmon1/curr2_input": "112\n",
    "sys/class/hwmon/hwmon1/in3_label": "NC\n",
    "sys/class/hwmon/hwmon1/in3_input": "0\n",
    "sys/class/hwmon/hwmon1/curr3_input": "0\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon1/in7_input": "40\n",
    "sys/class/hwmon/hwmon0/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon0/oc3_event_cnt": "4\n",
}
PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n",
    "proc/meminfo": "MemTotal:        8245692 kB\nMemAvailable:    7000000 kB\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "54321\n",
}
PI_PROGRAMS = {
    ("vcgencmd", "measure_temp"): "temp=54.3'C\n",
    ("vcgencmd", "measure_clock", "arm"): "frequency(0)=2400000000\n",
    ("vcgencmd", "get_throttled"): "throttled=0x50000\n",
    ("vcgencmd", "version"): "2023/10/30 16:45:10 \nCopyright (c) 2012 Broadcom\nversion 30f0c5e4 (release)\n",
    ("vcgencmd", "pmic_read_adc"): (
        " 3V7_WL_SW_A current(0)=0.02500000A\n   3V3_SYS_A current(1)=0.40000000A\n"
        "  VDD_CORE_A current(7)=2.50000000A\n"
        " 3V7_WL_SW_V volt(8)=3.70000000V\n   3V3_SYS_V volt(9)=3.30000000V\n  VDD_CORE_V volt(15)=0.72000000V\n"
        "   EXT5V_V volt(24)=5.10000000V\n      BATT_V volt(25)=0.00000000V\n"
    ),
}
LAPTOP = {
    "sys/class/dmi/id/product_name": "ThinkPad X1\n",
    "sys/class/dmi/id/bios_version": "N3AET80W\n",
    "sys/firmware/acpi/platform_profile": "balanced\n",
    "proc/cpuinfo": "model name\t: Intel(R) Core(TM) i7\nflags\t\t: avx2\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "3400000\n",
    "sys/devices/system/cpu/cpufreq/policy0/affected_cpus": "0\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "9\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "100\n",
    "sys/class/powercap/intel-rapl:0:1/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "5000000\n",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
    "sys/class/hwmon/hwmon0/name": "AC\n",
    "sys/class/hwmon/hwmon2/name": "BAT0\n",
    "sys/class/hwmon/hwmon2/power1_input": "9000000\n",
    "sys/class/hwmon/hwmon3/name": "coretemp\n",
    "sys/class/hwmon/hwmon3/temp1_input": "52000\n",
    "sys/class/hwmon/hwmon3/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon4/name": "amdgpu\n",
    "sys/class/hwmon/hwmon4/power1_average": "7500000\n",
    "sys/class/hwmon/hwmon4/power1_label": "PPT\n",
}
ORIN_NANO_LINE = (
    "07-14-2025 10:29:36 RAM 2147/7620MB (lfb 2x4MB) SWAP 1476/3810MB (cached 1MB) CPU [0%@729,12%@1036,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 26%@[306] NVDEC off APE 200 cpu@47.687C soc2@46.718C gpu@48.625C tj@48.625C CV0@-256C "
    "VDD_IN 4556mW/4500mW VDD_CPU_GPU_CV 483mW/483mW VDD_SOC 1451mW/1451mW"
)
NANO_LINE = (
    "RAM 1655/3956MB (lfb 311x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [12%@102,10%@204,11%@102,12%@102] EMC_FREQ 3%@1600 "
    "GR3D_FREQ 0%@76 APE 25 PLL@36.5C CPU@39C iwlwifi@44C PMIC@50C GPU@37C AO@47.5C thermal@38C "
    "POM_5V_IN 2132/2140 POM_5V_GPU 78/78 POM_5V_CPU 275/275"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    """`root`, now with these files in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def nobody(_command):
    """A device without any program."""
    return None


def pi_programs(command):
    """What a Raspberry Pi's programs say."""
    return PI_PROGRAMS.get(tuple(command))
