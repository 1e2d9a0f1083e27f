"""The search of a warmup's length (R8–R13): short runs choose, whole runs confirm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..judge.diagnosis import Step
from ..rules.schedule import LONG_WARMUP, longest_warmup, orders_of_magnitude
from ..words import readable
from .asking import Asking, train_all
from .ladder import HIGHER, LADDER, Reference, all_train
from .steps import SCREENING_SEEDS, Case

# times warmup_steps: how long a screening run is, post_warmup_steps = 2 × warmup_steps (R9)
SCREENED = 3
# updates of a screening run: below about 100, its verdict and the whole run's disagree
FEWEST_SCREENED = 200


def warmup_lengths(max_train_steps: int) -> list[int]:
    """10, 100, … and a tenth of max_train_steps (R10); empty where that is less than a step."""
    return sorted({*orders_of_magnitude(max_train_steps), longest_warmup(max_train_steps)} - {0})


def screened_updates(warmup_steps: int, max_train_steps: int) -> int:
    """How long a screening run of a warmup is (R9)."""
    return min(max(SCREENED * warmup_steps, FEWEST_SCREENED), max_train_steps + warmup_steps)


def cost_of_warmup(case: Case) -> float:
    """Updates that the search takes at most."""
    steps, ladder = case.steps, len(LADDER) + len(HIGHER)
    each = [
        SCREENING_SEEDS * screened_updates(length, steps) + case.seeds * (steps + length)
        for length in warmup_lengths(steps)
    ]
    return ladder * sum(each)


def find_warmup(case: Case, reference: Reference) -> Asking[tuple[int, Step]]:
    """Find the shortest warmup that reaches the highest multiple of the reference; 0 if none does.

    Screening runs of SCREENED × warmup_steps choose what whole runs confirm, with the warmup
    prepended.
    """
    steps = case.steps
    lengths = warmup_lengths(steps)
    studies: list[str] = []
    found: tuple[float, int] | None = None
    for ladder in (LADDER, HIGHER):
        screens = {
            length: case.ask(
                f"warmup-{length}-screen-{ladder[0]:g}x",
                [multiple * reference.base_lr for multiple in ladder],
                SCREENING_SEEDS,
                warmup_steps=[length],
                stop_after=screened_updates(length, steps),
            )
            for length in lengths
        }
        screened = yield from train_all(*screens.values())
        studies += [asked.name for asked in screens.values()]
        by_length = list(zip(screens, screened, strict=True))
        works = []
        for multiple in ladder:
            for length, trials in by_length:
                own = [t for t in trials if t.point.base_lr == multiple * reference.base_lr]
                if all_train(case, own):
                    works.append((multiple, length))
        confirmed = None
        for multiple, length in works:
            asked = case.ask(
                f"warmup-{length}-at-{multiple:g}x",
                [multiple * reference.base_lr],
                case.seeds,
                warmup_steps=[length],
            )
            (trials,) = yield from train_all(asked)
            studies.append(asked.name)
            if all_train(case, trials):
                confirmed = multiple, length
                break
        found = confirmed or found
        if confirmed is None or confirmed[0] < LADDER[0]:
            break
    sentences = tuple(_in_words(case, reference, found, lengths))
    step = Step("warmup", ("R8", "R9", "R10", "R11", "R12"), sentences, tuple(studies))
    return (found[1] if found else 0), step


def _in_words(
    case: Case,
    reference: Reference,
    found: tuple[float, int] | None,
    lengths: Sequence[int],
) -> Iterator[str]:
    tried = ", ".join(map(str, lengths))
    if found is None:
        yield (
            f"No warmup of {tried} steps reaches even 1 × {reference.name} = "
            f"{readable(reference.base_lr)} on every seed."
        )
        return
    multiple, length = found
    yield (
        f"{length} steps are the shortest of {tried} that reach {multiple:g} × {reference.name}, "
        f"base_lr {readable(multiple * reference.base_lr)}, on {case.seeds} of {case.seeds} seeds."
    )
    share = length / case.steps
    if share > LONG_WARMUP:
        yield f"That is {share:.0%} of max_train_steps: it may have to grow (R12)."
