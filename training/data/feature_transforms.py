"""Transforms of a table's columns: their parameters, found in the training part, and their domains.

Owns what a column must contain to be transformed. The formulas are those of `onward.model.transforms`.
"""

import numpy as np
from numpy.typing import NDArray

from onward.model import transforms
from onward.model.inputs import InputArray
from onward.model.tables.table import Table
from onward.model.transforms import Transform
from onward.training.config import Data


def fit_transform(
    table: Table, data: Data, name: str, column: InputArray, in_training: NDArray[np.bool_]
) -> Transform | None:
    """Returns the transform of a column (rows,); None if it has none. Raises DataError as `require_domain` does.

    The exponent of a Box-Cox transform is that of the largest likelihood of the training part.
    """
    kind = data.transforms.get(name)
    if kind is None:
        return None
    if kind == "relative":
        return Transform(kind="log")
    if kind != "box_cox":
        return Transform(kind=kind)
    require_domain(table, name, column, Transform(kind="box_cox", exponent=1.0))
    trained = column[in_training] if in_training.any() else column
    return transforms.box_cox(trained[~np.isnan(trained)])


def require_domain(table: Table, name: str, column: InputArray, transform: Transform) -> None:
    """Raises DataError if the transform is not defined for a value of the column (rows,); it counts the rows."""
    single = column.astype(np.float32)  # in which a value near the end of the domain may be on it
    refused = (column <= transform.above) | (single <= transform.above)
    if refused.any():
        way_out = "log1p is defined above -1, asinh for all numbers" if transform.above == 0 else "asinh has no limit"
        raise table.error_at_all(
            refused,
            name,
            f"is not above {transform.above:g}, as its transform {transform.kind} needs",
            f"{way_out}; data.missing_values can make them missing",
            quoted=False,
        )
