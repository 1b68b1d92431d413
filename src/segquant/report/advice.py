"""Which precision to ship: what the results mean, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segquant.report.columns import number
from segquant.report.results import BASELINE, PYTORCH, Result, measured

POINTS = 1.0  # of mIoU, that a method may lose and still be recommended
# Smaller differences do not count: speed varies more between runs, mIoU more between data sets.
ALIKE_POINTS, ALIKE_SIZE, ALIKE_SPEED = 0.1, 1.1, 1.2

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Advice:
    """The methods to ship and those to avoid.

    `within` are the methods that lose at most POINTS. From them come `smallest`, `fastest`, `accurate`, which is about
    as fast as the fastest and clearly more accurate, and `pytorch`, the fastest that needs no other engine; None where
    no method qualifies. `lossy` clearly lose more than POINTS, `unsure` may. `dominated` is {method: a method at least
    about as good in size, speed and accuracy, and clearly better in one}.
    """

    within: list[str]
    smallest: str | None
    fastest: str | None
    accurate: str | None
    pytorch: str | None
    lossy: list[str]
    unsure: list[str]
    dominated: dict[str, str]


def advise(results: Mapping[str, Result]) -> Advice | None:
    """The advice that the measured results support; None without a float32 and a method to compare with it."""
    done = measured(results)
    if BASELINE not in done or len(done) < 2:
        return None
    within = [result for method, result in done.items() if method != BASELINE and result.loss <= POINTS]
    smaller = [result for result in within if result.size_mb < done[BASELINE].size_mb]
    smallest, fast = _smallest(smaller), _fast(within)
    accurate = _most_accurate(fast)
    fastest = smallest if smallest in fast else accurate
    if accurate and fastest.loss - accurate.loss <= ALIKE_POINTS:
        accurate = None
    pytorch = _most_accurate(_fast([result for result in within if result.engine == PYTORCH]))
    lossy = [m for m, result in done.items() if (result.loss_interval or (result.loss,))[0] > POINTS]
    best = [result.method for result in (smallest, fastest, accurate, pytorch) if result]
    better = {result.method: [other for other in within if _dominates(other, result)] for result in within}
    dominated = {
        method: max(
            others, key=lambda other: (other in (smallest, fastest, accurate), not better[other.method], -other.loss)
        ).method
        for method, others in better.items()
        if others and method not in best
    }
    return Advice(
        within=[result.method for result in within],
        smallest=smallest.method if smallest else None,
        fastest=fastest.method if fastest else None,
        accurate=accurate.method if accurate else None,
        pytorch=pytorch.method if pytorch else None,
        lossy=lossy,
        unsure=[method for method, result in done.items() if result.loss > POINTS and method not in lossy],
        dominated=dominated,
    )


def _smallest(results: list[Result]) -> Result | None:
    """Of the methods about as small as the smallest, one that is fast, if there is one."""
    least = min((result.size_mb for result in results), default=0)
    small = [result for result in results if result.size_mb <= ALIKE_SIZE * least]
    return _most_accurate(_fast(small)) or min(small, key=lambda result: (result.size_mb, result.loss), default=None)


def _fast(results: list[Result]) -> list[Result]:
    """The methods about as fast as the fastest, as speeds that are alike may swap between runs.

    [] where no method is clearly faster than float32.
    """
    speeds = {result.method: result.speedup_eager["median"] for result in results if result.speedup_eager}
    highest = max(speeds.values(), default=0)
    if highest < ALIKE_SPEED:
        return []
    least = max(ALIKE_SPEED, highest / ALIKE_SPEED)
    return [result for result in results if speeds.get(result.method, 0) >= least]


def _most_accurate(results: list[Result]) -> Result | None:
    """The smallest of the methods about as accurate as the most accurate."""
    least = min((result.loss for result in results), default=0)
    alike = [result for result in results if result.loss <= least + ALIKE_POINTS]
    return min(alike, key=lambda result: (result.size_mb, result.loss), default=None)


def _dominates(first: Result, second: Result) -> bool:
    """Whether `first` is about as small, fast and accurate as `second`, and clearly better in one of the three.

    Size and accuracy decide between two methods that were not timed. A method that was timed does not compare with
    one that was not.
    """
    speeds = first.speedup_eager, second.speedup_eager
    if any(speeds) and not all(speeds):
        return False
    size, points = first.size_mb / second.size_mb, first.loss - second.loss
    faster = speeds[0]["median"] / speeds[1]["median"] if all(speeds) else 1.0
    alike = size <= ALIKE_SIZE and points <= ALIKE_POINTS and faster >= 1 / ALIKE_SPEED
    return alike and (size < 1 / ALIKE_SIZE or points < -ALIKE_POINTS or faster > ALIKE_SPEED)


def sentences(results: Mapping[str, Result]) -> list[tuple[str, str, str]]:
    """(heading, method or methods, words) of what `advise` says, best first; [] where it says nothing."""
    advice, done = advise(results), measured(results)
    if not advice:
        return []
    lines = []
    if advice.smallest:
        result = done[advice.smallest]
        parts = [_size(result), _loss(result), *([_speed(result)] if result.speedup_eager else [])]
        heading = "Smallest and fastest" if advice.fastest == advice.smallest else "Smallest"
        lines.append((heading, result.method, "; ".join(parts) + "."))
    else:
        lines.append(("Smallest", BASELINE, f"No smaller method stays within {POINTS:g} point of its mIoU."))
    if advice.fastest:
        if advice.fastest != advice.smallest:
            lines.append(("Fastest", advice.fastest, _summary(done[advice.fastest])))
        if advice.accurate:
            lines.append(("As fast, more accurate", advice.accurate, _summary(done[advice.accurate])))
    elif not advice.within or any(done[method].speedup_eager for method in advice.within):
        lines.append(("Fastest", BASELINE, f"No method within {POINTS:g} point of its mIoU is clearly faster."))
    if advice.pytorch and advice.pytorch not in (advice.fastest, advice.accurate):
        lines.append(("Fastest in PyTorch", advice.pytorch, _summary(done[advice.pytorch])))
    lines += [("Avoid", method, f"It {_loss(done[method])}.") for method in advice.lossy]
    lines += [("Unsure", method, f"It {_loss(done[method])}: more images would decide.") for method in advice.unsure]
    for better in dict.fromkeys(advice.dominated.values()):
        methods = ", ".join(method for method, other in advice.dominated.items() if other == better)
        alike = "small, fast and accurate" if done[better].speedup_eager else "small and accurate"
        words = f"{better} is at least about as {alike}, and clearly better in one of these."
        lines.append(("Without advantage", methods, words))
    return lines


def _summary(result: Result) -> str:
    words = f"{_speed(result)}; {_loss(result)}; {_size(result)}."
    return words[0].upper() + words[1:]


def _size(result: Result) -> str:
    return f"{result.size_mb:.2f} MB, {result.accuracy['compression']:.1f} times smaller than float32"


def _loss(result: Result) -> str:
    loss, gains = result.loss, result.loss <= -0.005
    words = f"{'gains' if gains else 'loses'} {abs(loss):.2f} points of mIoU"
    if abs(loss) < 0.005:
        words = "loses nothing in mIoU"
    if result.loss_interval:
        low, high = result.loss_interval
        low, high = (-high, -low) if gains else (low, high)
        words += f" (95 % interval: {number(low, 2)} to {number(high, 2)})"
    return words


def _speed(result: Result) -> str:
    ratio = result.speedup_eager
    if 1 / ALIKE_SPEED < ratio["median"] < ALIKE_SPEED:
        words = "about as fast as float32"
    elif ratio["median"] >= 1:
        words = f"{ratio['median']:.1f} times as fast as float32"
    else:
        words = f"takes {1 / ratio['median']:.1f} times as long as float32"
        ratio = {"min": 1 / ratio["max"], "max": 1 / ratio["min"]}
    place = "" if result.engine == PYTORCH else f"on {ENGINES.get(result.engine, result.engine)}, "
    return f"{place}{words} in PyTorch ({ratio['min']:.2f} to {ratio['max']:.2f})"
