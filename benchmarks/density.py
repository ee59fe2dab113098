"""Density weights of 28,000 prompts: neighbours against scikit-learn, loading against computing, size on disk.

    python benchmarks/density.py [--n 28000] [--dim 768]

Each figure is taken in a process of its own with one thread; memory is the process's peak, its imports and the data
included. The points are 40 clusters of different width. Embedding is not in it: benchmarks/density_hh.py has that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

K = 10
SEED_GIGABYTES = 5.25  # the seed's embeddings of 28,000 prompts: averaged logits, 50,304 wide, float32


def make_points(n: int, dim: int) -> np.ndarray:
    """(n, dim) float32 of length 1."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, dim)).astype(np.float32)
    points = centres[generator.integers(40, size=n)]
    points += generator.normal(size=(n, dim)).astype(np.float32) * generator.gamma(2, 0.3, size=(n, 1)).astype("f4")
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def scikit(folder: Path) -> None:
    from sklearn.neighbors import NearestNeighbors

    points = np.load(folder / "points.npy")
    np.save(folder / "scikit.npy", NearestNeighbors(n_neighbors=K, algorithm="brute").fit(points).kneighbors()[0])


def kat(folder: Path) -> None:
    from kat.density.neighbours import neighbour_distances

    np.save(folder / "kat.npy", neighbour_distances(np.load(folder / "points.npy"), K))


def write(folder: Path) -> None:
    """Compute weights and write a whole density folder, with prompts of an ordinary length."""
    from kat.density.folder import Row, finish_folder
    from kat.density.weights import density_weights
    from kat.runs.files import hash_json

    points = np.load(folder / "points.npy")
    out = folder / "density"
    out.mkdir()
    np.save(out / "embeddings.npy", points.astype(np.float16))
    ids = [hash_json(i) for i in range(len(points))]
    found = density_weights(np.load(out / "embeddings.npy", mmap_mode="r"), ids, k=K)
    rows = [Row(one, one, "benchmark", 600, 1.0, "w" * 200) for one in ids]
    said = {"model": "none", "model_hash": "0", "dose": 0.2, "estimator": "", "neighbours": "", "versions": {}}
    finish_folder(out, rows, found, dim=points.shape[1], **said)


def load(folder: Path) -> None:
    from kat.density.folder import load_density
    from kat.runs.files import hash_json

    ids = [hash_json(i) for i in range(len(np.load(folder / "points.npy", mmap_mode="r")))]
    start = time.perf_counter()
    load_density(folder / "density", ids, model="0", k=K)
    print(json.dumps({"load": time.perf_counter() - start}))


def peak_megabytes() -> float:
    """Peak of this process alone; ru_maxrss would begin at what its parent held when it was started."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def in_process(what: str, folder: Path) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--only", what, "--folder", str(folder)]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {key: value for line in said.splitlines() for key, value in json.loads(line).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=28_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--only", choices=("scikit", "kat", "write", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        start = time.process_time()
        {"scikit": scikit, "kat": kat, "write": write, "load": load}[asked.only](asked.folder)
        print(json.dumps({"cpu": time.process_time() - start, "peak": peak_megabytes()}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "points.npy", make_points(asked.n, asked.dim))
        found = {what: in_process(what, folder) for what in ("scikit", "kat", "write", "load")}
        difference = np.abs(np.load(folder / "scikit.npy") - np.load(folder / "kat.npy")).max()
        size = sum(path.stat().st_size for path in (folder / "density").iterdir()) / 1e6
    print(f"{asked.n:,} x {asked.dim}, {K} nearest neighbours, one thread\n")
    print("| | CPU time | peak memory |\n|---|---|---|")
    for what in ("scikit", "kat"):
        print(f"| {what} | {found[what]['cpu']:.1f} s | {found[what]['peak']:.0f} MB |")
    ratio = found["kat"]["cpu"] / found["scikit"]["cpu"], found["kat"]["peak"] / found["scikit"]["peak"]
    print(f"| ratio | {ratio[0]:.2f} | {ratio[1]:.2f} |\n")
    print(f"largest difference between the distances: {difference:.1e}")
    print(f"weights from embeddings: {found['write']['cpu']:.1f} s CPU, {found['write']['peak']:.0f} MB")
    print(f"weights loaded for their ids: {found['load']['load']:.2f} s")
    print(f"on disk: {size:.0f} MB (the seed: {SEED_GIGABYTES} GB, {1000 * SEED_GIGABYTES / size:.0f} times as much)")


if __name__ == "__main__":
    main()
