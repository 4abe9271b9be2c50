"""Writes the table of rates of ``docs/cost.md``, from the table that is used where no rates can be requested.

.. code-block:: bash

    python -m tests.docs.cost_page
"""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.backends.modal.rate_table import RATE_TABLE, TABLE_DATE
from skyrl_modal.backends.modal.rates import normalized_rates, resource_of_gpu
from skyrl_modal.spec.gpu import KNOWN_GPUS, GpuRequest

PAGE = Path(__file__).parents[2] / "docs" / "generated" / "rates.md"
#: GPU memory in GB by resource, from the data sheets of NVIDIA.
_MEMORY = {
    "T4": 16, "L4": 24, "A10G": 24, "L40S": 48, "A10040GB": 40, "A10080GB": 80, "RTX6000": 96, "H100": 80, "H200": 141,
    "B200": 192, "B300": 288,
}  # fmt: skip


def render() -> str:
    """Return the table as Markdown."""
    rates = normalized_rates(RATE_TABLE)
    names: dict[str, list[str]] = {}
    for name in KNOWN_GPUS:
        resource = resource_of_gpu(GpuRequest(name))
        if resource in rates:
            names.setdefault(resource, []).append(name)
    lines = [
        "<!-- Written by `python -m tests.docs.cost_page` from skyrl_modal/backends/modal/rate_table.py. -->",
        "",
        f"Public rates of Modal on {TABLE_DATE}, in US dollars:",
        "",
        "| `gpu` | memory of a GPU | one GPU, per hour | eight GPUs, per hour | eight GPUs, 24 hours |",
        "|---|---|---|---|---|",
    ]
    for resource in sorted(names, key=lambda resource: -rates[resource]):
        rate, spelled = rates[resource], ", ".join(f"`{name}`" for name in names[resource])
        lines.append(f"| {spelled} | {_MEMORY[resource]} GB | {rate:.2f} | {8 * rate:,.2f} | {192 * rate:,.0f} |")
    lines += [
        "",
        f"A physical CPU core costs {rates['CPU']:.4f} per hour, and a GiB of memory {rates['memory']:.4f}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
