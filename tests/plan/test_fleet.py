"""Fleet: the cheapest mix equals brute force under every limit; large menus are quick; shortages are named."""

import itertools
import math
import time

import numpy as np
import pytest
from plan_lp import same_as_stored

from moesim.api import load
from moesim.errors import DataMissing, NoResult, SpecError
from moesim.plan.fleet import (
    Fleet,
    FleetProblem,
    MenuEntry,
    cover,
    entries_of,
    menu_of,
    owned_usd_per_hour,
    replica_power,
    replica_price,
    solve_fleet,
    undominated,
)
from moesim.plan.fleet import program as fleet
from moesim.plan.parallelism import Axes, Demand, ParallelismProblem, option_table, priced_cuts
from moesim.plan.solution import Limits
from moesim.spec.deployment import Economics, Targets
from moesim.spec.topology import resolve_cluster


def problem(seed=0, options=4, classes=1, periods=1, *, reserved=False, scale=3.0, **limits):
    rng = np.random.default_rng(seed)
    names = tuple("ab"[:classes])
    entries = []
    for o in range(options):
        devices = int(rng.integers(1, 5))
        goodput = {c: float(np.round(devices * (0.5 + rng.random()), 2)) for c in names}
        price = float(np.round(devices * (1 + rng.random()), 2))
        entries.append(
            MenuEntry(
                f"e{o}", f"t{o % 2}", devices, goodput, price, price * 0.6 if reserved else math.inf,
                700.0 * devices * (0.6 + rng.random()),
            )
        )  # fmt: skip
    demand = np.round(scale * (0.5 + rng.random((periods, classes))), 2)
    return FleetProblem(menu_of(entries, names), demand, rng.integers(1, 12, periods).astype(float), **limits)


def enough(p, c, period):
    """Return every use of the entries that serves one class in one period, none above what alone would do."""
    goodput, need = p.menu.goodput[:, c], p.demand[period, c]
    found = []
    for use in itertools.product(*(range(math.ceil(need / g) + p.spare + 1) for g in goodput)):
        largest = max((g for g, n in zip(goodput, use, strict=True) if n), default=0.0)
        if sum(g * n for g, n in zip(goodput, use, strict=True)) - p.spare * largest >= need * (1 - 1e-12):
            found.append(use)
    return found


def brute(p):
    """Return the least cost over all uses; each entry is reserved and rented at best for its use."""
    options, classes, periods = len(p.menu.names), len(p.menu.classes), len(p.hours)
    share, best = p.hours / p.hours.sum(), math.inf
    blocks = [enough(p, c, period) for c in range(classes) for period in range(periods)]
    for pick in itertools.product(*blocks):
        use = np.array(pick).reshape(classes, periods, options).transpose(2, 0, 1)
        wanted, total = use.sum(axis=1), 0.0
        reserved = np.zeros(options, dtype=int)
        for o in range(options):
            costs = [
                (r * p.menu.reserved[o] if r else 0.0)
                + p.menu.on_demand[o] * (np.maximum(wanted[o] - r, 0) @ share)
                for r in range(int(wanted[o].max()) + 1)
            ]
            reserved[o] = int(np.argmin(costs))
            total += min(costs)
        if total < best - 1e-12 and not p.broken(
            Fleet(use, reserved, np.maximum(wanted - reserved[:, None], 0))
        ):
            best = total
    return best


LIMITS = [{}, {"spare": 1}, {"available": {"t0": 3.0}}, {"power_cap": 4000.0}, {"spare": 1, "power_cap": 7000.0},
          {"spare": 1, "available": {"t1": 4.0, "t0": 5.0}}]  # fmt: skip


@pytest.mark.parametrize("limits", range(len(LIMITS)))
@pytest.mark.parametrize("seed", range(5))
def test_one_period_equals_brute_force(seed, limits):
    p = problem(seed, **LIMITS[limits])
    same_as_brute(p, brute(p))


def same_as_brute(p, want):
    if math.isinf(want):
        with pytest.raises(NoResult, match="short of"):
            solve_fleet(p)
        return
    found = solve_fleet(p)
    assert found.sol_status == "optimal"
    assert found.objective == pytest.approx(want, rel=1e-9)
    assert found.objective == p.cost(found.answer)
    assert not p.broken(found.answer)
    rule = cover(p)
    if rule is not None:
        assert not p.broken(rule)
        assert p.cost(rule) >= want * (1 - 1e-9)


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_two_classes_equal_brute_force(seed, spare):
    p = problem(seed + 20, options=2, classes=2, scale=2.5, spare=spare, available={"t0": 4.0})
    same_as_brute(p, brute(p))


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_reserved_and_on_demand_over_periods_equal_brute_force(seed, spare):
    p = problem(seed + 40, options=2, periods=2, reserved=True, scale=2.5, spare=spare, power_cap=9000.0)
    same_as_brute(p, brute(p))


def test_reserved_covers_the_base_and_on_demand_the_peak():
    menu = menu_of([MenuEntry("x", "gpu", 8, {"chat": 10.0}, 20.0, 12.0)], ["chat"])
    p = FleetProblem(menu, np.array([[20.0], [50.0]]), np.array([20.0, 4.0]))
    found = solve_fleet(p)
    assert found.answer.reserved.tolist() == [2]
    assert found.answer.on_demand.tolist() == [[0, 3]]
    assert found.objective == pytest.approx(2 * 12 + 3 * 20 * 4 / 24)


def test_n_plus_one_prefers_small_replicas():
    """Losing one large replica costs more spare than losing a small one."""
    entries = [MenuEntry("large", "gpu", 8, {"c": 8.0}, 16.0), MenuEntry("small", "gpu", 2, {"c": 1.9}, 4.0)]
    menu = menu_of(entries, ["c"])
    plain = solve_fleet(FleetProblem(menu, np.array([[8.0]]), np.ones(1)))
    spare = solve_fleet(FleetProblem(menu, np.array([[8.0]]), np.ones(1), spare=1))
    assert plain.answer.use[:, 0, 0].tolist() == [1, 0]
    assert spare.answer.use[:, 0, 0].tolist() == [0, 6]
    assert spare.objective == 24.0


def big_menu(seed, options=10_000, types=6, *, reserved=False):
    """A menu as a sweep over parallelisms and batch limits makes it: efficiency of each device, times luck."""
    rng = np.random.default_rng(seed)
    price, speed, watts = 1 + 4 * rng.random(types), 1 + 3 * rng.random(types), 400 + 800 * rng.random(types)
    kind = rng.integers(0, types, options)
    devices = 2 ** rng.integers(0, 6, options)
    base = devices**0.95 * speed[kind] * (0.3 + 0.7 * rng.random(options))
    tilt = 0.5 + rng.random((options, 3))
    return menu_of(
        [
            MenuEntry(
                f"{o}", f"t{kind[o]}", int(devices[o]), dict(zip("abc", (base[o] * tilt[o]).tolist(), strict=True)),
                float(devices[o] * price[kind[o]]), float(devices[o] * price[kind[o]] * 0.6) if reserved else math.inf,
                float(devices[o] * watts[kind[o]]),
            )
            for o in range(options)
        ],
        "abc",
    )  # fmt: skip


@pytest.mark.parametrize("spare", [0, 1])
def test_ten_thousand_entries_within_thirty_seconds_and_one_percent(spare):
    menu = big_menu(spare)
    p = FleetProblem(
        menu, np.array([[120.0, 75.0, 33.0]]), np.ones(1), spare=spare, power_cap=150e3,
        available={"t0": 64.0, "t1": 64.0, "t2": 32.0},
    )  # fmt: skip
    began = time.perf_counter()
    found = solve_fleet(p, Limits(seconds=25, gap=0.005))
    assert time.perf_counter() - began < 30
    assert found.gap <= 0.01
    assert not p.broken(found.answer)


def test_pruning_loses_nothing():
    for seed in range(6):
        p = problem(seed + 60, options=6, spare=seed % 2, available={"t0": 6.0})
        whole = fleet.fleet_program(p)
        kept = undominated(p.menu, p.stock)
        from moesim.plan.program import solve

        full = solve(whole.program, Limits())
        assert len(kept) < len(p.menu.names) or seed > 0
        if full.values:
            assert solve_fleet(p).objective == pytest.approx(full.objective, rel=1e-9)


def test_a_cheap_type_that_is_scarce_does_not_drive_out_the_others():
    entries = [MenuEntry("cheap", "a", 1, {"c": 1.0}, 1.0), MenuEntry("dear", "b", 1, {"c": 1.0}, 2.0)]
    menu = menu_of(entries, ["c"])
    free, scarce = (
        solve_fleet(FleetProblem(menu, np.array([[3.0]]), np.ones(1), available=stock))
        for stock in ({}, {"a": 1.0})
    )
    assert (free.objective, scarce.objective) == (3.0, 5.0)
    assert undominated(menu, np.array([math.inf, math.inf])).tolist() == [0]
    assert undominated(menu, np.array([1.0, math.inf])).tolist() == [0, 1]


def test_shortages_are_named():
    menu = menu_of([MenuEntry("x", "h100", 8, {"chat": 10.0}, 20.0, power=8000.0)], ["chat", "code"])
    with pytest.raises(NoResult, match=r"class code: no menu entry has goodput .* 3 request/s short"):
        solve_fleet(FleetProblem(menu, np.array([[1.0, 3.0]]), np.ones(1)))
    with pytest.raises(NoResult, match=r"short of: power 15 kW"):
        solve_fleet(FleetProblem(menu, np.array([[35.0, 0.0]]), np.ones(1), power_cap=17e3))
    with pytest.raises(NoResult, match=r"short of: 16 h100"):
        solve_fleet(FleetProblem(menu, np.array([[35.0, 0.0]]), np.ones(1), available={"h100": 16.0}))
    with pytest.raises(NoResult, match=r"short of: 24 h100"):
        solve_fleet(
            FleetProblem(menu, np.array([[35.0, 0.0]]), np.ones(1), available={"h100": 16.0}, spare=1)
        )


def test_wrong_input_is_refused():
    with pytest.raises(SpecError, match="unknown class b"):
        menu_of([MenuEntry("x", "h", 1, {"b": 1.0}, 1.0)], ["a"])
    with pytest.raises(SpecError, match="price"):
        menu_of([MenuEntry("x", "h", 1, {"a": 1.0})], ["a"])
    with pytest.raises(SpecError, match="no menu entry uses z"):
        problem(available={"z": 1.0})


def test_prices_come_from_the_files_or_the_scenario_and_are_never_assumed():
    h100, rdu = resolve_cluster("h100-sxm-1"), resolve_cluster("sn40l-8")
    assert replica_price(h100, 4, Economics()) == pytest.approx(4 * 1.99)
    assert replica_price(rdu, 8, Economics.model_validate({"rental": "3 USD/h"})) == pytest.approx(24.0)
    with pytest.raises(DataMissing, match="no rental price"):
        replica_price(rdu, 8, Economics())
    with pytest.raises(DataMissing, match="not published"):
        replica_power(rdu, 8, Economics())
    desk = resolve_cluster("workstation-4090")
    assert desk.device.power is not None
    watts = replica_power(desk, 1, Economics())
    host = desk.node.host.power.peak / desk.devices_per_node if desk.node.host.power else 0.0
    assert watts == pytest.approx((desk.device.power.peak + host) * 1.3)
    owned = owned_usd_per_hour(desk, 1, Economics(), years=3.0)
    assert owned == pytest.approx(1599 / (3 * 8766) + watts / 1e3 * 0.1)


def test_menu_from_parallelism_is_planned_end_to_end():
    """Two device types, one class: the fleet is the cheaper of the two, counted by hand from the menu's rows."""
    scenario = load("quickstart").scenario
    axes = Axes(tp=(2, 4), pp=(1,), dp=(1,), ep=(1,), max_num_seqs=(128, 256), max_num_batched_tokens=(2048,))
    demand = Demand(np.array([1000.0]), np.array([200.0]))
    entries = []
    for name, price in (("dgx-h100", "3 USD/h"), ("dgx-a100", "1.5 USD/h")):
        topology = resolve_cluster(name)
        p = ParallelismProblem(
            scenario.model, topology, demand, 8, Targets.model_validate({"tpot": "60 ms"}), axes=axes
        )
        tables = {"chat": option_table(p, priced_cuts(p, lambda _: None))}
        entries += entries_of(tables, topology, Economics.model_validate({"rental": price}), reserved=1.0)
    menu = menu_of(entries, ["chat"])
    assert set(menu.types) == {"h100-sxm", "a100-80-sxm"}
    found = solve_fleet(FleetProblem(menu, np.array([[60.0]]), np.ones(1)))
    best = min(math.ceil(60 / g) * min(r, o) for g, r, o in zip(menu.goodput[:, 0], menu.reserved, menu.on_demand,
                                                               strict=True))  # fmt: skip
    assert found.objective <= best + 1e-9
    assert found.objective >= 60 * (menu.reserved / menu.goodput[:, 0]).min()
    assert found.sol_status == "optimal"


@pytest.mark.parametrize(
    "name", ["least_cost", "enough_goodput", "largest_replica", "paid_replicas", "power_cap", "device_stock"]
)
def test_each_constraint_is_as_stored(name):
    p = problem(options=2, periods=2, reserved=True, spare=1, power_cap=9000.0, available={"t0": 5.0})
    made = fleet.FleetProgram(p)
    getattr(fleet, name)(made)
    assert same_as_stored(made.program, f"fleet_{name}")
