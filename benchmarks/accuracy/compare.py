"""Estimators and other libraries against the truth: how well each ranks the samples of small trainings.

    python benchmarks/accuracy/compare.py [--cases NAME ...] [--seeds 0 1 2] [--no-peers] [--again] [--quick]
    python benchmarks/accuracy/compare.py --table     # print what has been found so far, and compute nothing

Every case of `cases.py` is trained in float32, and scored from that recording by every estimator of diffin and every other
library that finishes on it; the other libraries get the checkpoints, and where they need it every step. What they say is
held against four truths:

- expected: the exact derivative for the weight of every sample, mean over eight other orders of the data;
- own removal: this very run, trained again without a sample;
- own .95: likewise, with its weight lowered by a twentieth;
- single queries: own removal, of the loss of each of eight query samples (small networks only).

Everything is kept in `benchmarks/.cache/accuracy`; a run that was interrupted goes on. What is there is not measured anew
because diffin has changed, but the tables say so; `--again` is for that. Delete the folder of a case to begin it anew.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the other benchmarks

from study import CACHE, QUICK, Effort, Study
from tables import document, in_short

DEFAULT = (
    "logistic+flips",
    "mlp-sgd",
    "mlp-sgd+flips",
    "mlp-relu+flips",
    "mlp-adamw+flips",
    "mlp-constant+flips",
    "cnn-sgd-plain-gelu+flips",
    "cnn-adamw-group-gelu+flips",
    "cnn-sgd-batch-gelu+flips",
    "transformer+flips",
    "cnn-sgd-group-gelu+flips",
    "cnn-sgd-plain-relu+flips",
    "logistic",
    "cnn-sgd-plain-gelu",
    "transformer",
)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "accuracy-tables.md"
README = Path(__file__).resolve().parents[2] / "README.md"
_BEGIN, _END = "<!-- accuracy -->", "<!-- /accuracy -->"

_START = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME", default=DEFAULT, help="names of cases.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), help="of data and first parameters")
    parser.add_argument("--no-peers", action="store_true", help="diffin only")
    parser.add_argument("--again", action="store_true", help="also what another version of diffin has answered")
    parser.add_argument("--quick", action="store_true", help="small truths of one case, to see that everything runs")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and nothing else")
    parser.add_argument("--write", action="store_true", help="with --table: also into the documentation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("diffin").setLevel(logging.ERROR)  # what an estimator does not suit is the question here
    effort = QUICK if arguments.quick else Effort()
    names, seeds = arguments.cases, arguments.seeds
    if arguments.quick and names is DEFAULT:
        names, seeds = ("logistic+flips",), (0,)
    if not arguments.table:
        for name, seed in schedule(names, seeds):
            Study(name, seed, effort, _say).carry_out(peers=not arguments.no_peers, again=arguments.again)
            if effort.folder == CACHE:
                write()
    elif arguments.write:
        write()
    print(document(effort.folder, names))


def write() -> None:
    """The tables into the documentation, and the short one into the README."""
    DOCUMENT.write_text(document(CACHE, DEFAULT), encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    README.write_text(f"{before}{_BEGIN}\n{in_short(CACHE)}\n{_END}{after}", encoding="utf-8")


def schedule(names: tuple[str, ...], seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """What takes a minute, with all seeds; then the first seed of what takes more, and then the others."""
    cheap = [name for name in names if name.startswith(("logistic", "mlp"))]
    dear = [name for name in names if name not in cheap]
    return [(name, seed) for group in (cheap, dear) for seed in seeds for name in group]


def _say(what: str) -> None:
    print(f"{time.perf_counter() - _START:6.0f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
