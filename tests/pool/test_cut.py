"""A study with a cut ends with the numbers that the same study without one has, for all that go on:
in stacks and alone, with one worker and with two, whatever is killed in between.
"""

import csv
import json
import sys
from collections import Counter

import optuna
import pytest
from stored import small_study

from tunewright.search.compare import compare
from tunewright.search.diagnose import diagnose
from tunewright.search.errors import UserError
from tunewright.search.pool import driver, inbox
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.progress import Progress
from tunewright.search.run import run_study
from tunewright.search.show.tables import cut_in_words, missing_in_words
from tunewright.search.store.results import Results
from tunewright.search.store.storage import open_store
from tunewright.search.study.cut import FEWEST
from tunewright.search.study.sampling import next_points
from tunewright.search.study.study import load_study
from tunewright.search.train import loop
from tunewright.search.trial import as_told

STEPS = 100
CUT = {"at": 0.25, "keep": 0.5}
SPACE = {
    "clip_norm": [float("inf"), 1.0],
    "optimizer": {
        "momentum": {"base_lr": {"low": 1e-3, "high": 100.0, "log": True}},
        "adam": {"base_lr": {"low": 1e-5, "high": 1.0, "log": True}},
    },
}
FORGETFUL = """
import torch

class Forgetful:
    def __init__(self):
        self.seen = 0

    def build_model(self, seed):
        torch.manual_seed(seed)
        return torch.nn.Linear(4, 1)

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(batch_size, 4, generator=generator)

    def loss(self, model, batch):
        self.seen += 1
        target = batch.sum(1, keepdim=True) + 0.1 * (self.seen % 3)
        return ((model(batch) - target) ** 2).mean()

    def evaluate(self, model):
        return {"val_error": ((model(torch.eye(4)) - 1) ** 2).mean()}
"""


def study(**changes):
    given = {"trials": 16, "max_train_steps": STEPS, "evaluations": 20, "space": SPACE} | changes
    return small_study(**{key: value for key, value in given.items() if value is not None})


def trained(folder, one, slots=None, **options):
    given = {"backend": InProcess()} if "workers" not in options else {}
    return run_study(one, results=folder, slots=slots, progress=False, **given, **options)


def rows(folder):
    """trials.csv without what may differ between two runs of the same study."""
    with (folder / "small" / "trials.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# alone and in stacks, whose numbers differ by rounding
@pytest.fixture(scope="module", params=[1, 8], ids=["alone", "stacked"])
def slots(request):
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory, slots):
    """The trials of the study without a cut, by number."""
    found = trained(tmp_path_factory.mktemp("whole"), study(), slots=slots)
    return {trial.point.number: trial for trial in found}


@pytest.fixture(scope="module")
def cut(tmp_path_factory, slots):
    """The folder of the study with a cut, and its trials."""
    folder = tmp_path_factory.mktemp("cut")
    return folder, trained(folder, study(cut=CUT), slots=slots)


def test_who_goes_on_ends_as_without_a_cut_and_the_best_is_the_same(cut, whole):
    _, trials = cut
    gone_on = [trial for trial in trials if len(trial.curve.loss) > 25]
    assert all(trial.curve == whole[trial.point.number].curve for trial in gone_on)
    assert all(trial.verdict == whole[trial.point.number].verdict for trial in gone_on)
    best = min((t for t in whole.values() if t.feasible), key=lambda trial: trial.best_value)
    assert best.point.number in {trial.point.number for trial in gone_on}


def test_who_does_not_stopped_at_the_cut_with_the_curve_so_far(cut, whole):
    _, trials = cut
    stopped = [trial for trial in trials if trial.is_cut]
    assert len(stopped) >= 4
    for trial in stopped:
        assert trial.curve.total_steps == STEPS
        assert list(trial.curve.loss) == list(whole[trial.point.number].curve.loss[:25])
        assert list(trial.curve.eval_step) == [0, 5, 10, 15, 20, 25]
        assert trial.best_value == trial.curve.metrics["val_error"].min()
        assert trial.verdict.evidence.startswith("cut at step 25 of 100: val_error ")


def test_what_is_told_as_infeasible_at_the_cut_is_so_without_it(cut, whole):
    _, trials = cut
    infeasible = [trial for trial in trials if trial.verdict.infeasible]
    assert infeasible
    assert all(whole[trial.point.number].verdict.infeasible for trial in infeasible)


def test_half_of_each_group_goes_on(cut):
    _, trials = cut
    for optimizer in ("momentum", "adam"):
        own = [trial for trial in trials if trial.point.optimizer == optimizer]
        gone_on = sum(len(trial.curve.loss) > 25 for trial in own)
        stopped = sum(trial.is_cut for trial in own)
        assert gone_on >= max(FEWEST, stopped)
        assert stopped


def test_a_cut_trial_is_pruned_in_optuna_and_its_values_on_the_way_are_there(cut):
    folder, trials = cut
    url = f"sqlite:///{folder / 'small' / 'study.db'}"
    stored = optuna.load_study(study_name="small/batch_size=32", storage=url).trials
    for trial in trials:
        state = stored[trial.point.number].state.name
        assert (state == "PRUNED") == trial.is_cut
        values = trial.curve.metrics["val_error"].tolist()
        assert list(stored[trial.point.number].intermediate_values.values()) == values


def test_nothing_is_left_in_the_inbox_and_the_same_command_trains_no_more(cut, slots, monkeypatch):
    folder, _ = cut
    assert [path.name for path in (folder / "small" / "inbox").iterdir()] == []
    before = rows(folder)
    monkeypatch.setattr(loop, "_Loop", None)
    trained(folder, study(cut=CUT), slots=slots)
    assert rows(folder) == before


@pytest.mark.parametrize("slots", [8], indirect=True)
def test_in_stacks_of_another_size_the_table_is_the_same(cut, tmp_path):
    trained(tmp_path, study(cut=CUT), slots=3)
    assert rows(tmp_path) == rows(cut[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_with_any_number_of_workers_the_table_is_the_same(cut, slots, tmp_path, workers):
    trained(tmp_path, study(cut=CUT), slots=min(slots, 4), workers=workers)
    assert rows(tmp_path) == rows(cut[0])


class KilledError(inbox.EndOfTaskError):
    """Nothing more happens from here on, as after SIGKILL."""


@pytest.fixture
def killed(monkeypatch):
    """Have the run killed before its n-th change of the inbox or of the store."""
    left = [0]

    def dying(function):
        def call(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return function(*arguments)

        return call

    monkeypatch.setattr(inbox, "_write", dying(inbox._write))
    monkeypatch.setattr(inbox.Inbox, "_remove", dying(inbox.Inbox._remove))
    monkeypatch.setattr(driver, "tell", dying(driver.tell))
    return lambda changes: left.__setitem__(0, changes)


@pytest.mark.parametrize(
    "changes", [40, *(pytest.param(often, marks=pytest.mark.slow) for often in (13, 23))]
)
def test_killed_again_and_again_the_table_is_the_same(cut, tmp_path, killed, slots, changes):
    kills = 0
    while True:
        killed(changes)
        try:
            trained(tmp_path, study(cut=CUT), slots=slots)
            break
        except KilledError:
            kills += 1
    assert kills >= 3
    assert rows(tmp_path) == rows(cut[0])


def test_a_survivor_goes_on_from_its_saved_state(tmp_path, monkeypatch):
    taken = Counter()
    advance = loop._Loop._advance

    def counting(self, steps):
        taken.update({slot.point.number: steps for slot in self.slots})
        advance(self, steps)

    monkeypatch.setattr(loop._Loop, "_advance", counting)
    trials = trained(tmp_path, study(cut=CUT), slots=1)
    finite = [trial for trial in trials if trial.verdict.outcome != "non_finite"]  # seen later
    assert len(finite) > 12
    assert {one.point.number: taken[one.point.number] for one in finite} == {
        one.point.number: len(one.curve.loss) for one in finite
    }


def test_what_cannot_be_saved_begins_anew_and_gives_the_same_numbers(tmp_path, monkeypatch):
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "forgetful", None)
    del sys.modules["forgetful"]
    space = {"optimizer": {"sgd": {"base_lr": {"low": 1e-4, "high": 0.1, "log": True}}}}
    given = {"workload": "forgetful:Forgetful", "trials": 8, "space": space}
    whole = trained(tmp_path / "whole", study(**given))
    cut = trained(tmp_path / "cut", study(**given, cut=CUT))
    assert sum(trial.is_cut for trial in cut) == 4
    for one, other in zip(whole, cut, strict=True):
        assert other.is_cut or one.curve == other.curve


def test_further_seeds_are_for_configurations_that_go_on(tmp_path):
    one = study(
        cut=CUT, trials=8, seeds=2, space={"optimizer": {"adam": SPACE["optimizer"]["adam"]}}
    )
    trials = trained(tmp_path, one, slots=8)
    by_configuration = {}
    for trial in trials:
        by_configuration.setdefault(trial.point.number // 2, []).append(trial)
    assert len(by_configuration) == 8
    cut = {number for number, own in by_configuration.items() if own[0].is_cut}
    assert len(cut) >= 2
    for number, own in by_configuration.items():
        assert len(own) == (1 if number in cut else 2)
    assert missing_in_words(one, trials) == (
        f"small: {len(trials)} trainings planned, {len(trials)} done, 0 to train"
    )


@pytest.mark.parametrize("sampler", ["tpe", "halton+tpe"])
def test_a_learner_goes_on_after_each_rounds_cut(tmp_path, sampler):
    space = {"optimizer": {"adam": SPACE["optimizer"]["adam"]}}
    trials = trained(tmp_path, study(cut=CUT, trials=24, sampler=sampler, space=space), slots=8)
    assert len(trials) == 24
    for first in range(0, 24, 8):
        own = [trial for trial in trials if first <= trial.point.number < first + 8]
        assert any(trial.feasible for trial in own)
    assert sum(trial.is_cut for trial in trials) >= 6


@pytest.mark.parametrize("damage", ["record", "curve"])
def test_a_damaged_record_at_the_cut_is_trained_again(cut, slots, tmp_path, killed, damage, caplog):
    killed(60)
    with pytest.raises(KilledError):
        trained(tmp_path, study(cut=CUT), slots=slots)
    marks = sorted((tmp_path / "small" / "inbox").glob("*.cut"))
    assert marks
    broken = marks[0] if damage == "record" else marks[0].with_suffix(".npz")
    broken.write_bytes(b"torn")
    killed(10**6)
    trained(tmp_path, study(cut=CUT), slots=slots)
    assert rows(tmp_path) == rows(cut[0])
    assert broken.name in caplog.text


def test_what_a_cut_saves_at_most_is_told_beforehand():
    assert cut_in_words(study(cut=CUT)) == (
        "small: cut at 25 % of a training, where the best 50 % of each group go on: saves at most "
        "600 of 1,600 updates (38%)"
    )


def test_a_folder_without_its_database_keeps_its_cut_trials(cut, tmp_path):
    folder, trials = cut
    for name in ("study.toml", "trials.csv"):
        (tmp_path / "small").mkdir(exist_ok=True)
        (tmp_path / "small" / name).write_bytes((folder / "small" / name).read_bytes())
    trained(tmp_path, study(cut=CUT), slots=8)
    assert [row["verdict"] for row in rows(tmp_path)] == [t.verdict.outcome for t in trials]
    record = json.loads((tmp_path / "small" / "summary.json").read_text())
    assert record


# --- where nothing is cut -------------------------------------------------------------------------


def test_a_diagnosis_refuses_a_cut_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"small: cut: cannot be diagnosed: the question is the edge"
    ):
        diagnose(study(cut=CUT), results=tmp_path / "results")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slots", [8], indirect=True)
def test_reruns_of_a_comparison_are_never_cut_and_selected_trials_have_no_best_of(cut):
    folder, _ = cut
    results = Results.read(open_store(folder / "small"))
    checkpoint = next((folder / "small" / "checkpoints").glob("*.safetensors"))
    found = compare(results, checkpoint, seeds=5, backend=InProcess(), progress=False)
    reruns = [load_study(path) for path in (folder / "small" / "comparison").glob("*/study.toml")]
    assert len(reruns) == 1
    assert not any(one.cut for one in reruns)
    (candidate,) = found.candidates
    assert len(candidate.side.values) == 5
    assert candidate.side.best_of is None


def test_progress_says_how_many_wait_at_the_cut(capsys):
    one = study(cut=CUT)
    with Progress({"small": []}) as show:
        show.plan(one, next_points(one, []))
        show.tick([])
    assert "at the cut" not in capsys.readouterr().err
    with Progress({"small": []}) as show:
        show.plan(one, next_points(one, []))
        show.at_cut("small", 5)
        show.tick([])
    assert "small: 0/16: 0 feasible, 0 infeasible, 5 at the cut" in capsys.readouterr().err


def test_progress_counts_a_cut_trial_as_done(cut, capsys):
    _, trials = cut
    one = study(cut=CUT)
    with Progress({"small": trials}) as show:
        show.plan(one, next_points(one, [as_told(trial) for trial in trials]))
        show.tick([])
    counts = Counter("cut" if trial.is_cut else trial.feasible for trial in trials)
    assert (
        f"small: 16/16: {counts[True]} feasible, {counts[False]} infeasible, {counts['cut']} cut"
        in capsys.readouterr().err
    )
