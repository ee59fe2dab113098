"""kat_verify.toml, beside an adapter: failures that are known, and how long a check may take.

time_limit = 60              # seconds of the processor a check may take, by the clock 4 times that; 30 if not said
[xfail]
lr_follows_declared_schedule = "warm-up starts at 0 on purpose"    # strict: a pass is then an error
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kat.errors import UsageError

FILE = "kat_verify.toml"


@dataclass(frozen=True)
class Expected:
    """What a kat_verify.toml says. `unknown` are entries that name no check."""

    xfail: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    time_limit: float = 30.0
    file: Path | None = None


def read_expected(folder: Path | None, known: Collection[str]) -> Expected:
    """The expectations of the adapter in `folder`; none where there is no file. UsageError where it is malformed."""
    if folder is None or not (folder / FILE).is_file():
        return Expected()
    path = folder / FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no TOML ({error})") from None
    if extra := sorted(set(content) - {"xfail", "time_limit"}):
        raise UsageError(f"{path}: unknown key {extra[0]!r}; it holds time_limit and [xfail]")
    xfail, limit = content.get("xfail", {}), content.get("time_limit", Expected.time_limit)
    if not isinstance(xfail, dict) or not all(isinstance(reason, str) and reason.strip() for reason in xfail.values()):
        raise UsageError(f'{path}: [xfail] holds lines such as  check_id = "why it is expected"')
    if not isinstance(limit, int | float) or isinstance(limit, bool) or not limit > 0:
        raise UsageError(f"{path}: time_limit is {limit!r}; it must be a positive number of seconds")
    unknown = tuple(sorted(set(xfail) - set(known)))
    return Expected({k: v for k, v in xfail.items() if k in known}, unknown, float(limit), path)
