"""Messages about arguments of Python, said in the words of the command line."""

from __future__ import annotations

import logging
import re
from dataclasses import fields

from diffin.actions.delete import Linearised
from diffin.cli.options import ESTIMATORS

_KINDS = {kind.__name__: (name, kind) for name, kind in {**ESTIMATORS, "linearised": Linearised}.items()}
_SETTINGS = {field.name for _, kind in _KINDS.values() for field in fields(kind)}
_OPTIONS = (
    "about", "batch_size", "cut", "derivatives", "engine", "fractions", "method", "orders", "output", "processes",
    "recovery_steps", "rounds", "seed", "shadows",
)  # fmt: skip

_PHRASES = (
    ("resume=False", "--no-resume"),
    ("overwrite=True", "--overwrite"),
    ("force=True returns", "--force writes"),
    ("force=True", "--force"),
    ("pass parameters=None", "leave out --parameters"),
    ("class_balanced=True", "--balanced"),
    ("pass class_balanced=None", "leave it out"),
    ("Iterated(trust=False)", "--no-trust"),
    ("parameters= without", "--parameters without"),
    ("trajectory=diffin.Trajectory.open(folder)", "the folder of a recorded training as RUN"),
    ("trajectory=", "RUN"),
    ("query=None: pass", "the problem has no query: give it"),
    ("query=None", "the problem has no query"),
    ("self_influence= or influence=", "--self-influence"),
    ("or 'auto' for all evidence", "or leave it out"),
)
_SUBJECT = re.compile(r"^(evidence|samples)\b(?==|:| )")
_OF_PROBLEM = re.compile(r"\b(pass |or )(fit|query|test)=")
_LIST = re.compile(r"(?<=e\.g\. )\[([\d., ]+)\]")
_INSTANCE = re.compile(
    rf"(?P<chosen>estimator=)?(?:diffin\.)?\b(?P<kind>{'|'.join(_KINDS)}|Iterated)\((?P<given>[^()]*)\)"
)
_ARGUMENT = re.compile(r"(?<![\w(.-])(?<!--set )(?P<name>[a-z_]+)=(?P<value>'[^']*'|-?\w+(?:\.\w+)*)")


def as_options(message: str) -> str:
    """What to do about a mistake, in the options, arguments and files that somebody at the command line has.

    The library names the arguments of its functions; this is the one place that knows what they are called here. What it does
    not know, such as calls of functions, stays as it is, and so does what begins with an option: it was written here.
    """
    if message.startswith("--"):
        return message
    for python, shell in _PHRASES:
        message = message.replace(python, shell)
    message = _SUBJECT.sub(r"--\1", message)
    message = _OF_PROBLEM.sub(_given_to_the_problem, message)
    message = _LIST.sub(lambda match: match[1].replace(" ", ""), message)
    message = _INSTANCE.sub(_with_settings, message)
    return _ARGUMENT.sub(_option, message)


class Worded(logging.Formatter):
    """Log messages in the same words."""

    def format(self, record: logging.LogRecord) -> str:
        return as_options(super().format(record))


def _given_to_the_problem(match: re.Match[str]) -> str:
    name = "query" if match[2] == "test" else match[2]
    return f"{'or ' if match[1] == 'or ' else ''}give the Problem {name}="


def _with_settings(match: re.Match[str]) -> str:
    """``Unrolled(rank=3)`` as ``--set rank=3``, after ``--estimator unrolled`` if it was the argument's value."""
    given = [part.partition("=") for part in match["given"].split(", ") if part]
    if match["kind"] == "Iterated":
        return " ".join(_told(name, value) for name, _, value in given) or match[0]
    name, _ = _KINDS[match["kind"]]
    chosen = [f"--estimator {name}"] if match["chosen"] and name != "linearised" else []
    return " ".join([*chosen, *(f"--set {key}={_plain(value).lower()}" for key, _, value in given)]) or match[0]


def _option(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    asked_for = match.string[: match.start()].endswith(("pass ", "or ", "and ")) or not match.start()
    return _told(name, value) if name in _OPTIONS or (name in _SETTINGS and asked_for) else match[0]


def _told(name: str, value: str) -> str:
    if name in _OPTIONS:
        return f"--{name.replace('_', '-')} {_plain(value)}"
    return f"--set {name}={_plain(value)}"


def _plain(value: str) -> str:
    return value.strip("'")
