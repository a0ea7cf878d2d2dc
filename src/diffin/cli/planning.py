"""What a plan looks like on the terminal."""

from __future__ import annotations

import re

from rich.table import Table

from diffin.errors import DiffinError
from diffin.planning import Plan

_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def quantity(option: str, text: str) -> float:
    """A number that may end in k, M or B: ``12.8M`` is 12,800,000.

    Raises:
        DiffinError: it is not a positive number.
    """
    found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?)([kmb]?)", text.strip().lower())
    value = float(found[1].replace(",", "").replace("_", "")) * _FACTORS[found[2]] if found else 0.0
    if not value > 0:
        raise DiffinError(f"{option} {text}: pass a positive number, e.g. 50000, 12.8M or 1B")
    return value


def plan_table(plan: Plan) -> Table:
    """The plan, one line for each thing that may run out."""
    machines = plan.machines
    kind = f"{machines.count:,} x {machines.processes} processes" if machines.workers > 1 else "one process"
    table = Table(
        title=f"{plan.samples:,} samples at {plan.states} states on {kind}", title_justify="left", show_header=False
    )
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_column("")
    table.add_row("building the probes", duration(plan.probe_seconds), "once, on one process")
    table.add_row("scoring", duration(plan.start_seconds + plan.scoring_seconds), "reading and measuring")
    table.add_row("from start to end", duration(plan.seconds), "")
    table.add_row("machine time", f"{plan.machine_hours:,.2f} h", "" if plan.cost is None else f"cost {plan.cost:,.2f}")
    table.add_row("memory of a process", size(plan.process_bytes), "whatever the number of samples")
    table.add_row("disk: probes", size(plan.probe_bytes), "read once by every process")
    table.add_row("disk: scores", size(plan.score_bytes), "at most")
    if plan.read_bytes is not None and plan.read_rate is not None:
        table.add_row("data read", size(plan.read_bytes), "once")
        table.add_row("storage has to deliver", f"{size(plan.read_rate)}/s", "or the processes wait for it")
    return table


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves a number above one."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number above one."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count:,.0f} B"
