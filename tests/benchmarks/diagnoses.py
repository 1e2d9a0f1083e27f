"""What `diagnose` adopts by budget, and with how many trainings; on several sets of seeds.

The post-norm Transformer of studies/diagnose_post_norm.toml, where Adam is better than every other
remedy, and a healthy MLP, where nothing is to be adopted; then many simulated diagnoses where
training is unstable and no remedy is any better.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import tomli_w
from illnesses import STUDIES
from measure import print_footer, print_header, print_table

from tunewright.search.diagnose import diagnose
from tunewright.search.judge.diagnosis import Diagnosis
from tunewright.search.pool.in_process import InProcess
from tunewright.search.study.study import Study, load_study, parse_study

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from simulated import Simulated, diagnosed, study_of, updates_of  # noqa: E402

POST_NORM = load_study(ROOT / "studies/diagnose_post_norm.toml")
BUDGETS = (200, 100)
APART = 10_000  # between the seeds of two sets
# its edge is as far from lr_star for every remedy: only a base LR can be better
NULL = Simulated(0.08, best_base_lr=1.0, spread=0.005)
WORKERS = 2


def with_seeds(study: Study, first: int, **changes: object) -> Study:
    """The study on seeds from `first` on."""
    document = study.model_dump(
        exclude={"name", "source"}, exclude_defaults=True, exclude_none=True
    )
    document |= {"seed": first, **changes}
    return parse_study(document, study.name, place=study.name, source=tomli_w.dumps(document))


def decided(study: Study, budget: float, folder: Path, quick: bool) -> dict[str, object]:
    """A row: what was adopted, and what that took."""
    how = {"backend": InProcess()} if quick else {"workers": WORKERS}
    found = diagnose(study, folder, budget=budget, progress=False, **how)
    return {
        "study": study.name,
        "seed": study.seed,
        "budget": "none" if math.isinf(budget) else f"{budget:g}",
        **in_columns(found, study.max_train_steps),
    }


def in_columns(found: Diagnosis, each: int) -> dict[str, object]:
    (group,) = found.groups
    winner = group.winner
    gain = winner.evidence if winner else None
    numbers = {
        "base_lr": f"{winner.point.base_lr:.3g}" if winner else "",
        "gain": f"{gain.gain:.4f}" if gain else "",
        "p": f"{gain.p_better:.4f}" if gain else "",
    }
    return {
        "trainings": f"{found.updates / each:.0f}",
        "kind": group.kind,
        "lr_star": f"{group.lr_star:.3g}",
        "adopted": group.adopted,
        **numbers,
        "seeds": len(winner.values) if winner else 0,
        "rerun": ", ".join(one.name for one in group.remedies if one.values),
        "would do": group.would_do or "",
    }


def real(seeds: Sequence[int], folder: Path, quick: bool) -> Iterator[dict[str, object]]:
    """Rows of trainings that are trained; what several budgets ask for is trained once."""
    healthy = STUDIES["healthy"]
    asked = [(POST_NORM, first, budget) for first in seeds for budget in BUDGETS]
    asked += [(POST_NORM, seeds[0], math.inf)]
    asked += [(healthy, seeds[0], budget) for budget in (*BUDGETS, math.inf)]
    for study, first, budget in asked[:1] if quick else asked:
        if quick:
            changed = with_seeds(healthy, first, max_train_steps=20, evaluations=4)
        else:
            changed = with_seeds(study, first)
        row = decided(changed, budget, folder / f"{study.name}-{first}", quick)
        print(*row.values(), sep=" | ", file=sys.stderr, flush=True)
        yield row


def simulated(repetitions: int) -> Iterator[dict[str, object]]:
    """How often something is adopted where nothing is better."""
    for budget in (*BUDGETS, math.inf):
        adopted, spent = 0, 0.0
        for i in range(repetitions):
            study = study_of(seed=APART * i)
            found, asked = diagnosed(NULL, study, budget=budget)
            adopted += found.adopted != "plain"
            spent += sum(map(updates_of, asked)) / study.max_train_steps
        yield {
            "simulated": "no remedy is better",
            "budget": "none" if math.isinf(budget) else f"{budget:g}",
            "diagnoses": repetitions,
            "trainings, mean": f"{spent / repetitions:.0f}",
            "adopted": f"{adopted / repetitions:.1%}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short study, few simulations")
    parser.add_argument("--sets", type=int, default=5, help="sets of seeds (default: 5)")
    parser.add_argument("--results", type=Path, help="folder to keep trials in, and to go on from")
    options = parser.parse_args()
    sets = 1 if options.quick else options.sets
    print_header("Diagnoses under a budget")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.results or Path(temporary)
        print_table(list(real([APART * i for i in range(sets)], folder, options.quick)))
    print_table(list(simulated(2 if options.quick else 200)))
    print_footer()


if __name__ == "__main__":
    main()
