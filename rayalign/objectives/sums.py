"""The two steps every loss here ends with: a difference of paired vectors, and a weighted SUM.

Shapes: N elements (pairs, sequences or tokens). Both refuse shapes that broadcasting would accept, [N] beside
[N, 1] say, because the [N, N] it makes of them trains without an error.
"""

from torch import Tensor


def paired_difference(first: Tensor, second: Tensor) -> Tensor:
    """first - second for two vectors of one length: [N], [N] -> [N]."""
    check_vectors(first, second)
    return first - second


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """sum_n weights[n] values[n], weights constant (no gradient), None = all one: [N], [N] -> scalar."""
    if weights is None:
        return values.sum()
    check_vectors(values, weights)
    return (values * weights.detach()).sum()


def check_vectors(*vectors: Tensor) -> None:
    """Raises ValueError unless all are vectors of one length: [N], [N], ..."""
    shapes = [tuple(vector.shape) for vector in vectors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"want vectors of one length, got shapes {shapes}")
