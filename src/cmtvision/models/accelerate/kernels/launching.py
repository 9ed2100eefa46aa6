"""What both kernel files need: configurations to choose from, and how many programs keep a GPU busy."""
# mypy: disallow-untyped-calls=False

import triton

from cmtvision.models.accelerate.kernels.switch import INTERPRETED

ENOUGH_PROGRAMS = 1024  # several for each multiprocessor of the largest GPUs


def configurations(*rows: tuple[dict[str, int], int, int]) -> list[triton.Config]:
    """What autotuning tries, as (block sizes, warps, stages); the interpreter, which cannot time, takes the first."""
    configs = [triton.Config(blocks, num_warps=warps, num_stages=stages) for blocks, warps, stages in rows]
    return configs[:1] if INTERPRETED else configs


def block_of(size: int) -> int:
    """The power of two that holds a dimension of a matrix product: 16 at least, what tensor cores take."""
    return max(16, int(triton.next_power_of_2(size)))


def split(amount: int, others: int, multiple: int) -> tuple[int, int]:
    """Cut ``amount`` of work into equal parts, so that with ``others`` of its kind there are enough programs.

    Returns:
        The number of parts, and the size of one, a multiple of ``multiple``. They depend on the shape alone: sums over
        parts are added in the same order on each run.
    """
    wanted = max(1, ENOUGH_PROGRAMS // max(1, others))
    size = -(-amount // wanted)
    size = -(-size // multiple) * multiple
    return -(-amount // size), size
