"""A runtime's profile of fused and added operations, attributed to the layers of the graph."""

from collections.abc import Iterable


def attribute(nodes: Iterable[tuple[list[str], float]], layers: Iterable[str]) -> dict[str, float]:
    """Milliseconds of each layer.

    A node that belongs to no layer (a conversion, a norm, a layout change) is attributed to the next layer, whose
    input it prepares; what follows the last layer is attributed to that layer. So no time is lost, and the cost of
    converting to and from 8 bits is charged to the layers that cause it.

    Args:
        nodes: in the order of execution: names of all that a node was made of, and its milliseconds.
        layers: names.
    """
    known = set(layers)
    found: dict[str, float] = {}
    waiting = 0.0
    last = None
    for names, ms in nodes:
        waiting += ms
        owners = [name for name in names if name in known]
        if owners:
            for name in owners:
                found[name] = found.get(name, 0.0) + waiting / len(owners)
            waiting, last = 0.0, owners[-1]
    if last is not None:
        found[last] += waiting
    return found
