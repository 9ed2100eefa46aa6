"""The Pareto front: what nothing else beats in both cost and gain."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points on the front, by rising cost.

    Args:
        points: (cost, gain) of each; less cost is better, more gain is better.

    Returns:
        A point is on the front unless another costs no more and gains no less, one of the two strictly. Equal points
        are on it together, or not at all.
    """
    front: list[int] = []
    best = float("-inf")
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    for place in order:
        cost, gain = points[place]
        if gain > best:
            front.append(place)
            best = gain
        elif front and (cost, gain) == points[front[-1]]:
            front.append(place)
    return front
