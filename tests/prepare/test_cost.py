"""Tests of the cost of plans: rates, limits, what is not known, and budgets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal import Launcher, SpecError
from skyrl_modal.backends.modal.rate_store import RATES_MAX_AGE, store_failure, store_rates
from skyrl_modal.backends.modal.rate_table import RATE_TABLE, TABLE_DATE
from skyrl_modal.backends.modal.rates import normalized_rates, resource_of_gpu
from skyrl_modal.spec.gpu import KNOWN_GPUS, GpuRequest
from skyrl_modal.views.money import format_money

#: CPU cores and memory of a container for which nothing is requested.
MINIMUM = 0.125 * RATE_TABLE["cpu_hour_cost"] + 0.125 * RATE_TABLE["mem_gib_hour_cost"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder of the user, with Modal's variables of no other test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "modal.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_SERVER_URL", "MODAL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "skyrl_modal"


def plan_of(checkout: Path, **fields: Any) -> Any:
    """Return a plan of `true` on Modal."""
    return Launcher(**{"backend": "modal", "checkout": checkout, "ray": None, **fields}).plan("true")


def test_cost_of_a_plan_by_the_table(checkout: Path) -> None:
    """GPUs, CPU cores and memory are added, for all nodes, with the source and its date."""
    cost = plan_of(checkout, gpu="H100:8", nodes=2, timeout="2h", retries=1).cost

    assert cost.per_hour == pytest.approx(2 * (8 * 3.95 + MINIMUM))
    assert cost.at_most == pytest.approx(4 * cost.per_hour)
    assert TABLE_DATE in cost.source


def test_requested_cpu_and_memory_are_included(checkout: Path) -> None:
    """A run without GPUs costs its cores and its memory."""
    cost = plan_of(checkout, gpu=None, cpu=4.0, memory=8192).cost

    assert cost.per_hour == pytest.approx(4 * 0.0473 + 8 * 0.008)


def test_several_gpu_types(checkout: Path) -> None:
    """Each GPU type of a list has a cost, and the highest one is that of the run."""
    plan = plan_of(checkout, gpu=["A100-80GB:4", "H100:4"])

    assert [gpu for gpu, _ in plan.cost.choices] == ["A100-80GB:4", "H100:4"]
    assert plan.cost.per_hour == pytest.approx(4 * 3.95 + MINIMUM)
    assert "$10.01 (A100-80GB:4) or $15.81 (H100:4) per hour" in dict(plan.rows())["cost"]


def test_unknown_gpu_has_no_cost(checkout: Path) -> None:
    """A GPU type without a rate is named, and its cost is not known."""
    plan = plan_of(checkout, gpu="GB200:4", budget=5.0)

    assert (plan.cost.per_hour, plan.cost.at_most) == (None, None)
    assert "unknown per hour" in dict(plan.rows())["cost"]
    assert [finding.code for finding in plan.findings if "GB200" in finding.message] == ["budget-without-rate"]


def test_region_factor_is_not_included(checkout: Path) -> None:
    """A chosen region costs more by a factor that is not known, which the plan states."""
    assert "region" in dict(plan_of(checkout, region="us-east").rows())["cost"]


@pytest.mark.parametrize("gpu", sorted(set(KNOWN_GPUS) - {"ANY", "L40", "GH200", "GB200", "GB300"}))
def test_table_has_the_known_types(gpu: str) -> None:
    """The table has a rate for each GPU type that Modal documents, except for the newest."""
    assert normalized_rates(RATE_TABLE)[resource_of_gpu(GpuRequest(gpu))] > 0


# -- rates of the workspace ------------------------------------------------------------------------------------------


def test_stored_rates_of_the_workspace(checkout: Path) -> None:
    """Rates that an earlier run has fetched are used; a rate that they lack is from the table, which is stated."""
    store_rates({"gpu_hour_cost_h100": 2.0, "cpu_hour_cost": 0.0})
    cost = plan_of(checkout, gpu="H100:2").cost

    assert cost.per_hour == pytest.approx(4.0 + 0.125 * RATE_TABLE["mem_gib_hour_cost"])
    assert cost.source.startswith("your workspace's rates of ")
    assert f"public rates of {TABLE_DATE} for memory" in cost.source


def test_names_that_are_not_known(checkout: Path) -> None:
    """Rates with other names are not used, and the output states for what the table is used instead."""
    store_rates({"h100": 1.0, "gpu_hour_cost_h100_nonpreemptible": 9.0, "per hour": 3.0, "": 1.0})
    cost = plan_of(checkout, gpu="H100").cost

    assert cost.per_hour == pytest.approx(3.95 + MINIMUM)
    assert cost.source.endswith("for CPU cores, memory, H100")


def test_rates_of_another_workspace_are_not_used(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are stored for the token with which they were fetched."""
    store_rates({"gpu_hour_cost_h100": 2.0})
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-other")

    assert plan_of(checkout, gpu="H100").cost.per_hour == pytest.approx(3.95 + MINIMUM)


@pytest.mark.parametrize("age", [RATES_MAX_AGE + 10, -100])
def test_old_rates_are_not_used(checkout: Path, cache: Path, age: float) -> None:
    """Rates that are too old, or from the future, are not used. A failed request keeps the stored ones."""
    store_rates({"gpu_hour_cost_h100": 2.0})
    store_failure()
    assert plan_of(checkout, gpu="H100").cost.per_hour < 3.95
    path = cache / "modal-rates.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fetched_at": time.time() - age}))

    assert plan_of(checkout, gpu="H100").cost.per_hour > 3.95


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"rates": 3}', b"[" * 100_000, b'{"rates": {"a": NaN}, "fetched_at": "x"}']
)
def test_damaged_file_of_rates(checkout: Path, cache: Path, content: bytes) -> None:
    """A damaged file is ignored, also a symbolic link."""
    store_rates({"gpu_hour_cost_h100": 2.0})
    path = cache / "modal-rates.json"
    path.write_bytes(content)
    assert plan_of(checkout, gpu="H100").cost.per_hour > 3.95
    path.rename(cache / "target")
    path.symlink_to(cache / "target")

    assert plan_of(checkout, gpu="H100").cost.per_hour > 3.95


@given(st.dictionaries(st.text(max_size=30), st.one_of(st.floats(), st.text(max_size=10), st.none()), max_size=8))
def test_any_names_and_values(values: dict[str, Any]) -> None:
    """Whatever the server returns, the result has finite rates that are not negative."""
    assert all(0 <= rate < float("inf") for rate in normalized_rates(values).values())


# -- declared rates and budgets --------------------------------------------------------------------------------------


def test_local_run_costs_nothing(checkout: Path) -> None:
    """A local run costs nothing, and its plan has no line about it."""
    plan = Launcher(backend="local", checkout=checkout, ray=None).plan("true")

    assert (plan.cost.per_hour, plan.cost.at_most) == (0.0, 0.0)
    assert "cost" not in dict(plan.rows())


def test_declared_rate(checkout: Path) -> None:
    """A declared rate is for each node, on every backend, and is stored in the job."""
    plan = Launcher(backend="local", checkout=checkout, nodes=3, rate=1.5, timeout="30m").plan("true")

    assert (plan.cost.per_hour, plan.cost.at_most) == (4.5, 2.25)
    assert plan.job.rate is not None
    assert plan.job.rate.per_hour == 1.5
    assert plan_of(checkout, gpu="H100", rate=2.0).cost.per_hour == 2.0


def test_budget_limits_the_cost(checkout: Path) -> None:
    """The cost is at most the budget. Without one, a run that resumes has no limit."""
    plan = plan_of(checkout, gpu="H100:8", timeout="24h", budget=300, resume="auto")

    assert plan.cost.at_most == 300
    assert ("budget", "$300.00") in plan.rows()
    assert plan_of(checkout, gpu="H100:8", resume="auto").cost.at_most is None
    assert json.loads(plan.to_json())["cost"]["at_most"] == 300


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({"backend": "local", "budget": 1}, ["budget-without-rate"]),
        ({"backend": "local", "budget": 1, "rate": 0}, ["budget-without-rate"]),
        ({"backend": "local", "budget": 1, "rate": 30}, []),
        ({"backend": "local", "budget": 0.4, "rate": 30}, ["budget-short"]),
        ({"backend": "modal", "budget": 0.5, "gpu": "H100:8"}, ["budget-short"]),
        ({"backend": "modal", "budget": 1, "gpu": "H100:8"}, []),
    ],
)
def test_findings_about_budgets(checkout: Path, fields: dict[str, Any], codes: list[str]) -> None:
    """A budget without effect, and one for less than a minute, are findings."""
    found = Launcher(**{"checkout": checkout, "ray": None, **fields}).plan("true").findings

    assert [finding.code for finding in found if finding.code.startswith("budget")] == codes


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "3", True, 1e9])
def test_invalid_rate(value: Any) -> None:
    """A rate is a finite number that is not negative."""
    with pytest.raises(SpecError, match="rate"):
        Launcher(rate=value)


@given(st.floats(min_value=0, max_value=1e9))
def test_money_has_few_digits(value: float) -> None:
    """An amount is a dollar sign and digits, without an exponent, and close to the value."""
    text = format_money(value)

    assert "e" not in text
    if text.startswith("<"):
        assert value < 0.0001
    else:
        assert float(text[1:].replace(",", "")) == pytest.approx(value, rel=0.06, abs=0.006)
