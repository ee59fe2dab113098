"""Compute the golden files and the published schemas again, show what changed, write them: `make golden`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from golden import schemas
from golden.cases import CASES, TOLERANCE, differences


def main() -> None:
    folder = Path(__file__).parent
    for name, compute in CASES.items():
        path = folder / f"{name}.json"
        fresh = json.loads(json.dumps(compute()))
        lines = differences(json.loads(path.read_text()), fresh, TOLERANCE[name]) if path.is_file() else ["new"]
        print(f"{name}: {len(lines)} difference(s)")
        for line in lines[:20]:
            print(f"  {line}")
        path.write_text(json.dumps(fresh, indent=1, ensure_ascii=False) + "\n")
    schemas.FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas.schemas().items():
        (schemas.FOLDER / f"{name}.json").write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
