"""Write catalog/data/t_quantiles.json: the 0.975 quantile of Student's t for 1 to 2,000 degrees of freedom.

    python tools/make_t_quantiles.py include/evpack/catalog/data/t_quantiles.json

The table ships so that an auditor recomputes an interval without scipy and to the last bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MAX_DF = 2000
PER_LINE = 6


def render() -> str:
    import scipy
    from scipy.stats import t

    values = [json.dumps(float(t.ppf(0.975, df))) for df in range(1, MAX_DF + 1)]
    lines = [", ".join(values[start : start + PER_LINE]) for start in range(0, MAX_DF, PER_LINE)]
    source = f"scipy {scipy.__version__}, scipy.stats.t.ppf(0.975, df)"
    rule = "above the last df its value is used: the quantile falls with df, so the interval only widens"
    head = {"schema": "evpack_t_quantiles_v1", "probability": 0.975, "source": source, "beyond": rule}
    return json.dumps(head, indent=0)[:-2] + ',\n"df_from_1": [\n' + ",\n".join(lines) + "\n]\n}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
