"""Exports that are killed at random moments: prints for each kind how many kills fell while something was half written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm
from written import (
    hugging_face,
    labels_of,
    read_hugging_face,
    read_images,
    read_parquet,
    read_shards,
    write_images,
    write_parquet,
    write_shards,
)

from diffin.export import Chosen, export, open_data

SIZE = 400


def begun(destination: Path) -> int | None:
    """When the export that is under way, or was killed, began; it says which one it is."""
    try:
        return (destination.with_name(destination.name + ".part") / "diffin-export").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def main() -> None:
    # Its own lock is shared by forked processes, and one that is killed while holding it would stop all others.
    tqdm.set_lock(threading.RLock())
    folder, kills, generator = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
    labels = sorted(labels_of(SIZE))
    write_images(folder / "images", labels)
    hugging_face(labels).save_to_disk(str(folder / "dataset"))
    write_parquet(folder / "table", labels, files=10, group=5)
    write_shards(folder / "shards", labels, shards=10)
    given = np.array(labels)
    changed = given.copy()
    changed[::7] = (changed[::7] + 1) % 3
    chosen = Chosen(SIZE, np.arange(0, SIZE, 2), given, changed[::2])
    half_written = {}
    readers = {"images": read_images, "dataset": read_hugging_face, "table": read_parquet, "shards": read_shards}
    for kind, read in readers.items():
        whole, killed = folder / f"{kind}-whole", folder / f"{kind}-killed"
        start = time.perf_counter()
        export(open_data(folder / kind), whole, chosen)
        took = time.perf_counter() - start
        expected = read(whole)
        if len(expected) != SIZE // 2:
            sys.exit(f"{kind} was not written as chosen")
        half = 0
        for _ in range(10 * kills):
            if half == kills:
                break
            before = begun(killed)
            child = os.fork()
            if child == 0:
                export(open_data(folder / kind), killed, chosen)
                os._exit(0)
            while begun(killed) in (None, before) and not killed.exists():
                time.sleep(0.0002)
            time.sleep(generator.uniform(0, took))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if killed.exists():
                if read(killed) != expected:
                    sys.exit(f"{kind} was half written")
                shutil.rmtree(killed)
                took /= 1.5
            else:
                half += 1
        # The next one clears away what the killed ones left.
        export(open_data(folder / kind), killed, chosen)
        if read(killed) != expected or killed.with_name(killed.name + ".part").exists():
            sys.exit(f"{kind} was not written after kills")
        half_written[kind] = half
    sys.stdout.write(json.dumps(half_written))


if __name__ == "__main__":
    main()
