"""A comparison as `tunewright compare` leaves it, from values alone."""

from tunewright.search.judge.best_of import best_of
from tunewright.search.judge.comparison import (
    Candidate,
    Checkpoint,
    Comparison,
    Side,
    decide,
    evidence,
    settles,
)
from tunewright.search.trial import Point


def side(name: str, values: list[float], trials: list[float], batch_size: int = 32) -> Side:
    return Side(
        name=name,
        point=Point(3, batch_size, "momentum", 0.1),
        trials=len(trials),
        space="momentum: base_lr 0.001 to 10 (log)",
        search_seconds=120.0,
        max_train_steps=1000,
        total_steps=1100,
        values=tuple(values),
        infeasible=0,
        run_seconds=2.0,
        best_of=best_of(trials) if len(trials) > 1 else None,
    )


def comparison(
    candidates: list[list[float]],
    baseline: list[float] | None,
    checkpoint: float = 0.3,
    warning: str = "Mind this.",
) -> Comparison:
    found = [evidence(values, baseline or [checkpoint]) for values in candidates]
    return Comparison(
        objective="val_error",
        first_seed=1,
        seeds=len(candidates[0]),
        checkpoint=Checkpoint("runs/<best>.pt", "0" * 64, checkpoint),
        baseline=side("plain", baseline, [0.3]) if baseline else None,
        candidates=tuple(
            Candidate(
                side(f"found {i}", values, [0.9, 0.5, 0.2]),
                one,
                decision,
                settles(one, len(found)),
                None,
            )
            for i, (values, one, decision) in enumerate(
                zip(candidates, found, decide(found), strict=True)
            )
        ),
        test={"baseline": {"test_error": 0.31}, "candidate": {"test_error": 0.21}},
        warnings=(warning,),
    )
