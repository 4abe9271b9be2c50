"""Modal's public rates at a known date, for where the rates of the user's workspace cannot be asked for.

The names and values are those that ``modal billing rates --json`` printed. Several public repositories have recorded
the same ones: xiaoqianran/stable-diffusion.cpp (2026-08-15) and others (2026-09-20). ``docs/cost.md`` is generated from
this module.
"""

from __future__ import annotations

#: The date on which the rates were recorded.
TABLE_DATE = "2026-09-20"
#: US dollars per hour of one GPU, one physical CPU core, and one GiB of memory, by Modal's names of the rates.
RATE_TABLE = {
    "gpu_hour_cost_b300": 7.10,
    "gpu_hour_cost_b200": 6.25,
    "gpu_hour_cost_h200": 4.54,
    "gpu_hour_cost_h100": 3.95,
    "gpu_hour_cost_rtx6000": 3.03,
    "gpu_hour_cost_a100_80gb": 2.50,
    "gpu_hour_cost_a100_40gb": 2.10,
    "gpu_hour_cost_l40s": 1.95,
    "gpu_hour_cost_a10g": 1.10,
    "gpu_hour_cost_l4": 0.80,
    "gpu_hour_cost_t4": 0.59,
    "cpu_hour_cost": 0.0473,
    "mem_gib_hour_cost": 0.008,
}

#: What a container of a function has if nothing is requested: physical CPU cores, and MiB of memory
#: (https://modal.com/docs/guide/resources).
DEFAULT_CPU, DEFAULT_MEMORY = 0.125, 128
