"""The held-out errors of a bundle as a table for people."""

from typing import Any, cast

from model.manifest import Manifest
from training import evaluate

_NAMES = {"model": "this model", "last_value": "last value", "seasonal_naive": "seasonal naive"}


def text(manifest: Manifest) -> str:
    """One table a target: the model beside each naive forecast, and by how much it is better."""
    metrics = cast("dict[str, Any]", manifest.metrics)
    lines = [f"{manifest.name} {manifest.version}: one step ahead on {metrics['steps']:,} held-out steps"]
    for target, table in metrics["targets"].items():
        lines += ["", f"{target:<20}{'MAE':>12}{'RMSE':>12}   model's MAE, RMSE against it"]
        for name, label in _NAMES.items():
            if name in table:
                row = f"  {label:<18}{table[name]['mae']:>12.4g}{table[name]['rmse']:>12.4g}"
                if better := table["better"].get(name):
                    row += "   " + ", ".join(f"{-share:+.1%}" for share in better.values())
                lines.append(row)
    losing = [
        f"{target} by {measure.upper()} against {_NAMES[name]}" for target, name, measure in evaluate.losses(metrics)
    ]
    if losing:
        lines += ["", "WARNING: the model loses to a naive forecast: " + "; ".join(losing)]
    return "\n".join(lines)
