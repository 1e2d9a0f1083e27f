"""The results folder that a diagnosis leaves, of simulated trials."""

import math
from dataclasses import replace

from simulated import Simulated, follow, study_of

from tunewright.search.diagnose import updates_of
from tunewright.search.judge.diagnosis import Diagnosis
from tunewright.search.procedure.asking import together
from tunewright.search.procedure.group import diagnosis_of
from tunewright.search.procedure.purse import Budget
from tunewright.search.procedure.steps import sweep_of
from tunewright.search.store.files import curve_path, write_curve
from tunewright.search.store.places import STEPS as FOLDER
from tunewright.search.store.results import write_diagnosis
from tunewright.search.store.storage import create_store, tell

UNSTABLE = Simulated(
    0.08, best_base_lr=1.0, raised=lambda point: 13.0 if point.warmup_steps >= 10 else 1.0
)
UNSTABLE = replace(UNSTABLE, spread=0.005)


def stored(results, model, study=None, budget=math.inf):
    """The results folder that a diagnosis leaves, of simulated trials; `budget`: in trainings."""
    study = study or study_of()
    store = create_store(study, results)
    sweep = sweep_of(study)

    def kept(asked):
        trials = model.trials_of(asked)
        home = create_store(asked, results if asked.name == study.name else store.folder / FOLDER)
        for trial in trials:
            tell(home, trial)
            write_curve(curve_path(home.folder, trial.point), trial.curve)
        return trials

    groups = [group for size in study.batch_sizes for group in sweep.groups(size)]
    shared = Budget(budget, study.max_train_steps, updates_of(sweep), updates_of)
    purses = {group: shared.purse() for group in groups}
    asked = together(*(diagnosis_of(study, group, 3, {}, purses[group]) for group in groups))
    found, studies = follow(asked, kept)
    result = Diagnosis(
        study.name, study.objective, 3, 0, budget, (), tuple(filter(None, found)), {}
    )
    write_diagnosis(store.folder, result)
    return store, result, studies
