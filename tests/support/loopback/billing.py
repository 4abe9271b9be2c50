"""Rates of the workspace.

Assumptions about Modal: the names and values are those that users have recorded of `modal billing rates --json` in
August and September 2026, in US dollars per hour. What a token without permission gets is not known.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .rpc import Context, Service

#: H100 and H200 differ from the public rates, as those of a workspace with negotiated rates would.
RATES = {
    "cpu_hour_cost": "0.04730",
    "cpu_hour_cost_sandbox": "0.141900",
    "gpu_hour_cost_a100_40gb": "2.10000",
    "gpu_hour_cost_a100_80gb": "2.50000",
    "gpu_hour_cost_a10g": "1.10000",
    "gpu_hour_cost_b200": "6.25000",
    "gpu_hour_cost_b300": "7.10000",
    "gpu_hour_cost_h100": "3.00000",
    "gpu_hour_cost_h200": "4.00000",
    "gpu_hour_cost_l4": "0.80000",
    "gpu_hour_cost_l40s": "1.95000",
    "gpu_hour_cost_rtx6000": "3.03000",
    "gpu_hour_cost_t4": "0.59000",
    "mem_gib_hour_cost": "0.00800",
    "mem_gib_hour_cost_sandbox": "0.024000",
    "volume_storage_gib_month_cost": "0.09000",
    "old_name": "1.0",
}
ODD_RATES = {"NVIDIA H100": "3.0", "vCPU": "0.02", "gpu_hour_cost_h100_eu": "9", "cpu_hour_cost": "NaN"}


class Billing(Service):
    """RPCs about rates."""

    async def WorkspaceBillingRates(self, request: Any, context: Context) -> api_pb2.WorkspaceBillingRatesResponse:
        kind = self.plane.mode.rates
        if kind == "refused":
            raise GRPCError(Status.PERMISSION_DENIED, "This token has no access to billing.")
        if kind == "silent":
            await asyncio.sleep(600)
        return api_pb2.WorkspaceBillingRatesResponse(
            rates=ODD_RATES if kind == "odd" else RATES,
            deprecation_errors={"old_name": "old_name was removed"},
            formatted="CPU $0.04730 / core / hour",
        )
