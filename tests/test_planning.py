"""From a measured run to a forecast for other machines."""

from __future__ import annotations

import re

import pytest

from diffin.cli.planning import duration, plan_table, quantity, size
from diffin.derivatives.selfcheck import SelfCheck
from diffin.diagnose import Diagnosis, Forecast
from diffin.errors import DiffinError
from diffin.planning import Machines, plan


def _diagnosis(samples: int | None = 1000, checkpoints: int = 10) -> Diagnosis:
    forecast = Forecast(
        samples=samples,
        checkpoints=checkpoints,
        probe_seconds=100.0,
        inference_seconds=None,
        scoring_seconds=None,
        probe_bytes=5_000_000,
        reading=1e-3,
        measuring=4e-3,
        process_bytes=10**9,
    )
    check = SelfCheck(samples=0, reference="forward", chosen="difference", back_ends=())
    return Diagnosis(check, forecast, (), "Unrolled()")


def test_one_process_takes_the_measured_time_of_every_sample():
    found = plan(_diagnosis())
    assert found.samples == 1000
    assert found.scoring_seconds == pytest.approx(5.0)
    assert found.seconds == pytest.approx(105.0)
    assert found.machine_hours == pytest.approx(105 / 3600)
    assert found.cost is None
    assert found.read_rate is None


def test_samples_are_shared_and_the_probes_are_not():
    one = plan(_diagnosis(), 10**9)
    many = plan(_diagnosis(), 10**9, machines=Machines(100, 16, speed=2.0, price=3.0))
    assert many.scoring_seconds == pytest.approx(one.scoring_seconds / 3200)
    assert many.probe_seconds == pytest.approx(one.probe_seconds / 2)
    assert many.machine_hours == pytest.approx((50 + 100 * (many.start_seconds + many.scoring_seconds)) / 3600)
    assert many.cost == pytest.approx(3 * many.machine_hours)
    assert many.process_bytes == one.process_bytes


def test_storage_has_to_deliver_the_data_once_and_the_probes_to_every_process():
    found = plan(_diagnosis(), 10**6, machines=Machines(processes=10), sample_bytes=20_000)
    assert found.read_bytes == 20_000 * 10**6
    seconds = found.start_seconds + found.scoring_seconds
    assert found.read_rate == pytest.approx((found.read_bytes + 10 * found.probe_bytes) / seconds)
    assert found.score_bytes == 10**6 * 8 * 14


def test_what_cannot_be_planned_is_said():
    with pytest.raises(DiffinError, match="samples=None"):
        plan(_diagnosis(samples=None))
    with pytest.raises(DiffinError, match="measures nothing"):
        plan(_diagnosis(checkpoints=0))
    with pytest.raises(DiffinError, match="sample_bytes"):
        plan(_diagnosis(), sample_bytes=0)
    for wrong in ({"count": 0}, {"processes": 0}, {"speed": 0.0}, {"price": -1.0}):
        with pytest.raises(DiffinError, match=next(iter(wrong))):
            Machines(**wrong)


@pytest.mark.parametrize(
    ("text", "value"), [("12.8M", 12.8e6), ("1B", 1e9), ("25k", 25e3), ("50_000", 5e4), ("1e6", 1e6)]
)
def test_quantities(text, value):
    assert quantity("--plan", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "1.2.3", "5G"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(DiffinError, match=re.escape(f"--plan {text}")):
        quantity("--plan", text)


def test_the_table_says_everything_that_may_run_out():
    found = plan(_diagnosis(), 10**6, machines=Machines(4, 8, price=1.0), sample_bytes=1000)
    cells = [cell for column in plan_table(found).columns for cell in column.cells]
    assert {"memory of a process", "disk: scores", "storage has to deliver", "1.0 GB"} <= set(cells)
    assert (duration(89), duration(90), duration(7200), duration(2e5)) == ("89 s", "1.5 min", "2.0 h", "2.3 d")
    assert (size(999), size(1500), size(2.5e12)) == ("999 B", "1.5 kB", "2.5 TB")
