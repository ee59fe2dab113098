"""Density weights of all HH prompts, from MiniLM and from the hidden states of a kat checkpoint.

    python benchmarks/density_hh.py --model CKPT --out DIR      (needs KAT_DATA and kat[embeddings])

One process an embedder, one thread. Time is CPU time; memory is the process's peak, its imports included. A folder that
was finished before is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from kat.density.build import build_density, read_prompts
from kat.density.folder import load_density, read_density
from kat.density.report import summarise
from kat.errors import UsageError
from kat.runs.files import read_json, write_json


def peak_megabytes() -> float:
    """Peak of this process alone; ru_maxrss would begin at what its parent held when it was started."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def build(model: str, out: Path) -> None:
    """Build one folder and write beside it what that took."""
    from kat.density.embed import open_embedder

    prompts, said = read_prompts(sorted(Path(os.environ["KAT_DATA"]).glob("pairs_hh_*.jsonl.gz")))
    print(said, file=sys.stderr)
    embedder = open_embedder(model)
    marks: dict[str, float] = {"": time.process_time()}

    def report(phase: str, done: int, total: int) -> None:
        marks[phase] = time.process_time()
        if done % 512 < 64:
            print(f"{model} {phase}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    build_density(prompts, embedder, out, report=report)
    end = time.process_time()
    took = {"embedding": marks["embedding"] - marks[""], "weights": end - marks["embedding"], "peak": peak_megabytes()}
    write_json(out.with_name(f"{out.name}.json"), took)


def table(folders: dict[str, Path]) -> None:
    opened = {name: read_density(folder) for name, folder in folders.items()}
    took = {name: read_json(folder.with_name(f"{folder.name}.json")) for name, folder in folders.items()}
    names = list(folders)
    rows: list[tuple[str, list[str]]] = []
    for key, words, unit in (
        ("embedding", "embedding, CPU time", "s"),
        ("weights", "neighbours and weights, CPU time", "s"),
        ("peak", "peak memory", "MB"),
    ):
        rows.append((words, [f"{took[name][key]:,.1f} {unit}" for name in names]))
    loads, sizes = [], []
    for name in names:
        ids = [row.id for row in opened[name].rows]
        start = time.perf_counter()
        load_density(folders[name], ids, model=opened[name].metadata.model_hash)
        loads.append(f"{time.perf_counter() - start:.2f} s")
        sizes.append(f"{sum(path.stat().st_size for path in folders[name].iterdir()) / 1e6:.1f} MB")
    rows += [("weights loaded for their ids", loads), ("on disk", sizes)]
    summaries = [summarise(opened[name], opened[names[1 - i]]).rows() for i, name in enumerate(names)]
    rows += [(words, [summary[j][1] for summary in summaries]) for j, (words, _) in enumerate(summaries[0])]
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for words, values in rows:
        print(f"| {words} | {' | '.join(values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a kat checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two density folders")
    parser.add_argument("--only", choices=("minilm", "hidden"), help="build one of them and no table")
    asked = parser.parse_args()
    if "KAT_DATA" not in os.environ:
        raise UsageError("KAT_DATA is unset: the real data is not here")
    models = {"minilm": "minilm", "hidden": asked.model}
    folders = {name: asked.out / name for name in models}
    if asked.only:
        build(models[asked.only], folders[asked.only])
        return
    for name, folder in folders.items():
        if not folder.with_name(f"{name}.json").exists():
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            again = [sys.executable, __file__, "--model", asked.model, "--out", str(asked.out), "--only", name]
            subprocess.run(again, env=environment, check=True)
    print(json.dumps({name: str(models[name]) for name in models}), file=sys.stderr)
    table(folders)


if __name__ == "__main__":
    main()
