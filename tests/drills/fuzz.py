"""`make fuzz`: the properties of test_properties.py with thousands of examples each, and a record of them.

    PYTHONPATH=tests:tests/support python tests/drills/fuzz.py [EXAMPLES]        writes data/results/fuzz.csv

One row a property: cases tried, failures (1: the property does not hold; its smallest counter-example is
printed), seconds, and the versions that were tried. Draws are new ones in each session.
"""

from __future__ import annotations

import os
import sys
import time
import traceback

import hypothesis
import pandas as pd

from zs_lib.config import paths
from zs_lib.runs.provenance import provenance

RECORD = paths.ROOT / "data" / "results" / "fuzz.csv"
EXAMPLES = 4500
"""A property: with those that are dear or few, above 100,000 in all."""


def properties() -> dict:
    """Name → test of every property."""
    import test_properties

    return {
        name: test
        for name, test in vars(test_properties).items()
        if getattr(test, "is_hypothesis_test", False)
    }


def fuzz(test) -> dict:
    """Try one property; what came of it."""
    cases, failures, started = 0, 0, time.monotonic()
    inner = test.hypothesis.inner_test

    def counted(*args, **kwargs):
        nonlocal cases
        inner(*args, **kwargs)
        cases += 1  # not those that an `assume` turned away

    test.hypothesis.inner_test = counted
    try:
        test()
    except Exception:
        failures = 1
        traceback.print_exc()
    return {"cases": cases, "failures": failures, "seconds": round(time.monotonic() - started, 1)}


def main() -> int:
    os.environ["ZS_FUZZ_EXAMPLES"] = sys.argv[1] if len(sys.argv) > 1 else str(EXAMPLES)
    about, rows = provenance(), []
    for name, test in properties().items():
        rows.append(
            {
                "property": name.removeprefix("test_"),
                **fuzz(test),
                "hypothesis": hypothesis.__version__,
                "python": about["machine"]["python"],
                "sources": about["code"]["sources"],
            }
        )
        print("{property}: {cases} cases, {failures} failures, {seconds} s".format(**rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(RECORD, index=False, lineterminator="\n")
    print(
        f"{table['cases'].sum()} cases, {table['failures'].sum()} properties failed: "
        f"{RECORD.relative_to(paths.ROOT)}"
    )
    return int(table["failures"].any())


if __name__ == "__main__":
    sys.exit(main())
