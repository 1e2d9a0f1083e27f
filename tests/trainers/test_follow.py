"""Logs that grow: what their rows say, whenever they are read."""

import json
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.search.judge.verdict import judge
from tunewright.search.study.study import parse_study
from tunewright.search.train.recorder import Recorder
from tunewright.search.trainers.follow import LogError, LogFile, LogFollower, Measured, Row
from tunewright.search.trainers.watched import MisuseError
from tunewright.search.trial import Point

POINT = Point(number=0, batch_size=8, optimizer="sgd", base_lr=0.1)


def study(steps=100, log=(), **keys):
    log = {"path": "{run_dir}/log", "loss": "loss", "grad_norm": "norm"} | dict(log)
    document = {
        "command": ["train", "{base_lr}"],
        "log": {key: value for key, value in log.items() if value is not None},
        "objective": "val",
        "max_train_steps": steps,
        "batch_sizes": [8],
        "trials": 1,
        "space": {
            "warmup_steps": 0,
            "clip_norm": math.inf,
            "optimizer": {"sgd": {"base_lr": 0.1}},
        },
    }
    return parse_study(document | keys, "logged", "logged")


def rows_of(path, text, status=None):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [cells for _, cells in LogFile(path).rows(status)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("step,loss\n1,0.5\n2,0.4\n", [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "0.4"}]),
        ("step;loss\r\n1;0.5\r\n", [{"step": "1", "loss": "0.5"}]),
        ("step\tloss\n1\t0.5\n", [{"step": "1", "loss": "0.5"}]),
        ("\ufeffstep,loss\n1,0.5\n", [{"step": "1", "loss": "0.5"}]),
        ('step,"a, b"\n1,"0,5"\n', [{"step": "1", "a, b": "0,5"}]),
        ('step,note\n1,"two\nlines"\n', [{"step": "1", "note": "two\nlines"}]),
        ("\n\nstep,loss\n\n1,0.5\n", [{"step": "1", "loss": "0.5"}]),
        ("step,val\n1,2\nstep,val\n3,4\n", [{"step": "1", "val": "2"}, {"step": "3", "val": "4"}]),
        ('{"step": 1, "loss": NaN}\n\n{"step": 2}\n', [{"step": 1, "loss": math.nan}, {"step": 2}]),
        ('\n{"step": 1}\n', [{"step": 1}]),
        ("step,loss\n1,0.5\n2,0.", [{"step": "1", "loss": "0.5"}]),
        ("step", []),
        ("", []),
    ],
)  # fmt: skip
def test_rows_of_a_log(text, rows, tmp_path):
    assert repr(rows_of(tmp_path / "log", text)) == repr(rows)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("step,loss\n1,0.5\n2,0.4", 2),
        ("step,loss\n1,0.5\n2", 1),  # half a row
        ('{"step": 1}\n{"step": 2}', 2),
        ('{"step": 1}\n{"step": ', 1),
        ('{"step": 1}', 1),
    ],
)
def test_a_last_line_without_its_end_counts_when_nothing_more_follows_and_it_is_whole(
    text, count, tmp_path
):
    assert len(rows_of(tmp_path / "log", text, status=0)) == count
    assert len(rows_of(tmp_path / "log", text)) == text.count("\n") - ("step," in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"step": 1}\nhello\n', "line 2 is no JSON object, got 'hello'"),
        ('{"step": 1}\n[1]\n', "line 2 is no JSON object, got '[1]'"),
        ("step,loss\n1,2,3\n", "line 2 has 3 cells, and the header 2"),
    ],
)
def test_lines_that_are_none_of_a_log(text, said, tmp_path):
    with pytest.raises(LogError) as error:
        rows_of(tmp_path / "log", text)
    assert str(error.value) == said


@given(st.lists(st.integers(1, 40), max_size=30))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_log_that_is_read_in_pieces_has_the_same_rows(form, tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("pieces") / "log"
    if form == "csv":
        content = 'step,note,loss\n1,"a ""b""",0.5\n2,"two\nlines é",0.25\n3,x,\n'.encode()
    else:
        content = "".join(f"{json.dumps({'step': i, 'é': 'ü'})}\n" for i in range(9)).encode()
    whole = rows_of(path, content)
    path.write_bytes(b"")
    log, found, rest = LogFile(path), [], content
    for cut in [*cuts, len(content)]:
        with path.open("ab") as file:
            file.write(rest[:cut])
        rest = rest[cut:]
        assert not log.is_replaced()
        found += [cells for _, cells in log.rows()]
    assert found == whole


def follow(path, text, study, status=0):
    path.write_text(text)
    follower = LogFollower(path, study, POINT)
    follower.read(status)
    return follower


def log_of(losses, first=0, norms=None, every=1, val=None):
    """A CSV log with a loss every so many steps, counted from `first`, and evaluations by step."""
    lines, val = ["step,loss,norm,val"], dict(val or {})
    if 0 in val:
        lines.append(f"0,,,{val.pop(0)}")
    for i, loss in enumerate(losses):
        step = first + i * every
        norm = "" if norms is None else norms[i]
        lines.append(f"{step},{loss},{norm},{val.get(step, '')}")
    return "\n".join([*lines, ""])


def test_a_log_of_every_update_is_the_curve_that_a_recorder_has(tmp_path):
    rng = random.Random(0)
    losses = [2.0 / (i + 1) + 0.1 * rng.random() for i in range(100)]
    norms = [rng.random() for _ in range(100)]
    val = {0: 2.0, 50: 1.0, 100: 0.5}
    recorder = Recorder(100, "val")
    recorder.report({"val": 2.0})
    for i in range(100):
        recorder.record(losses[i], norms[i])
        if i + 1 in val:
            recorder.report({"val": val[i + 1]})
    measured = follow(tmp_path / "log", log_of(losses, 1, norms, val=val), study()).measured
    assert measured.curve() == recorder.curve()
    assert measured.verdict() == recorder.verdict()
    assert measured.is_complete
    assert not measured.is_over


def test_updates_may_be_counted_from_0(tmp_path):
    losses = [1.0 - i / 100 for i in range(100)]
    curves = [
        follow(tmp_path / "log", log_of(losses, first, losses), study()).measured.curve()
        for first in (0, 1)
    ]
    assert curves[0] == curves[1]


def test_a_metric_in_the_row_of_a_loss_counts_as_after_its_update(tmp_path):
    text = "step,loss,norm,val\n0,1,1,9\n1,1,1,\n2,1,1,8\n"
    assert follow(tmp_path / "log", text, study()).measured.curve().eval_step.tolist() == [1, 3]
    text = "step,loss,norm,val\n0,,,9\n0,1,1,\n1,1,1,\n2,,,8\n2,1,1,\n"
    assert follow(tmp_path / "log", text, study()).measured.curve().eval_step.tolist() == [0, 2]


@pytest.mark.parametrize(("first", "every"), [(50, 50), (0, 50), (10, 10), (49, 50)])
def test_a_log_of_some_updates_is_judged_by_its_own_spacing(first, every, tmp_path):
    """Losses that rise at once for good: infeasible, whatever the spacing; and no other is."""
    count = 400
    rises = [1.0 - i / count if i < 200 else 50.0 for i in range(count)]
    falls = [1.0 - 0.9 * i / count for i in range(count)]
    for losses, outcome in ((rises, "diverged"), (falls, "feasible")):
        text = log_of(losses, first, every=every)
        measured = follow(tmp_path / "log", text, study(count * every)).measured
        assert measured.verdict().outcome == outcome
        assert measured.is_complete
        curve = measured.curve()
        assert len(curve.grad_norm) == 0
        assert len(curve.loss_step) == count


def test_a_log_without_norms_is_judged_by_its_losses(tmp_path):
    losses = [1.0 - i / 200 for i in range(100)]
    found = follow(tmp_path / "log", log_of(losses, 1, val={0: 2, 100: 1}), study()).measured
    curve = found.curve()
    assert (len(curve.grad_norm), curve.loss_step.tolist()) == (0, list(range(100)))
    assert found.verdict().feasible


def test_a_loss_without_a_norm_has_the_one_before_or_the_first(tmp_path):
    text = "step,loss,norm,val\n1,1,,\n2,1,5,\n3,1,,\n4,1,7,\n5,1,,\n"
    curve = follow(tmp_path / "log", text, study()).measured.curve()
    assert curve.grad_norm.tolist() == [5, 5, 5, 7, 7]


def test_an_evaluation_is_where_the_objective_is_and_has_other_metrics_of_the_same_step(tmp_path):
    text = "step,loss,norm,val,acc\n1,1,1,,0.1\n1,,,9,\n2,1,1,,0.2\n3,1,1,8,\n3,,,,0.3\n"
    own = study(log={"metrics": ["acc"]})
    curve = follow(tmp_path / "log", text, own).measured.curve()
    assert curve.eval_step.tolist() == [1, 3]
    assert {name: values.tolist() for name, values in curve.metrics.items()} == {
        "val": [9, 8],
        "acc": [0.1, 0.3],
    }


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "Infinity", "-inf"])
@pytest.mark.parametrize("column", ["loss", "norm"])
def test_a_number_that_is_not_finite_ends_training(column, text, tmp_path):
    row = {"loss": f"2,{text},1,", "norm": f"2,1,{text},"}[column]
    log = f"step,loss,norm,val\n1,1,1,\n{row}\n3,1,1,\n4,1,1,\n"
    measured = follow(tmp_path / "log", log, study()).measured
    assert measured.is_infeasible
    assert measured.verdict().outcome == "non_finite"
    assert len(measured.curve().loss) == 2


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_hopeless_training_ends_at_the_same_update_whenever_its_log_was_read(
    pieces, norms, tmp_path
):
    losses = [1.0 - i / 1000 if i < 100 else 80.0 for i in range(1000)]
    val = {step: 1.0 if step < 100 else 90.0 for step in range(0, 1001, 50)}
    lines = log_of(losses, 1, [1.0] * 1000 if norms else None, val=val).splitlines(keepends=True)
    path = tmp_path / "log"
    follower = LogFollower(path, study(1000), POINT)
    size = -(-len(lines) // pieces)
    for i in range(0, len(lines), size):
        with path.open("a") as file:
            file.writelines(lines[i : i + size])
        follower.read()
        if follower.measured.is_over:
            break
    measured = follower.measured
    assert measured.is_infeasible
    assert measured.losses == 340  # a quarter of the run after the rise, or so
    assert measured.verdict() == judge(measured.curve(), "val")


def test_it_ends_where_a_recorder_would_say_so(tmp_path):
    losses = [1.0 - i / 1000 if i < 100 else 80.0 for i in range(1000)]
    val = {step: 1.0 if step < 100 else 90.0 for step in range(0, 1001, 50)}
    recorder = Recorder(1000, "val")
    recorder.report({"val": 1.0})
    while not recorder.is_hopeless():
        recorder.record(losses[recorder.step], 1.0)
        if recorder.step in val:
            recorder.report({"val": val[recorder.step]})
    text = log_of(losses, 1, [1.0] * 1000, val=val)
    measured = follow(tmp_path / "log", text, study(1000)).measured
    assert measured.curve() == recorder.curve()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,x,1,", "line 2: loss: must be a number, got 'x'"),
        ("1,1,x,", "line 2: norm: must be a number, got 'x'"),
        ("1,1,1,good", "line 2: val: must be a number, got 'good'"),
        ("x,1,1,", "line 2: step: must be a number, got 'x'"),
        (",1,1,", "line 2: step: must be a whole number ≥ 0, got ''"),
        ("1.5,1,1,", "line 2: step: must be a whole number ≥ 0, got '1.5'"),
        ("nan,1,1,", "line 2: step: must be a whole number ≥ 0, got 'nan'"),
        ("5,1,1,\n4,1,1,", "its steps must rise: 4 comes after 5"),
        ("5,1,1,\n5,1,1,", "its steps must rise: 5 comes after 5"),
    ],
)
def test_cells_that_are_no_numbers_and_steps_that_go_back(rows, said, tmp_path):
    with pytest.raises(LogError) as error:
        follow(tmp_path / "log", f"step,loss,norm,val\n{rows}\n", study())
    assert str(error.value) == said


def test_json_booleans_are_no_numbers(tmp_path):
    with pytest.raises(LogError, match="loss: must be a number, got True"):
        follow(tmp_path / "log", '{"step": 1, "loss": true}\n', study())


def test_text_in_columns_that_nobody_reads_is_passed_over(tmp_path):
    text = "step,loss,norm,val,note\n1,1,1,,good\n"
    assert follow(tmp_path / "log", text, study()).measured.losses == 1


def test_one_update_more_than_planned_is_passed_over_and_more_are_a_mistake(tmp_path):
    losses = [1.0] * 12
    for first, extra in ((0, 1), (1, 1)):
        text = log_of(losses[: 10 + extra], first, losses)
        measured = follow(tmp_path / "log", text, study(10)).measured
        assert measured.losses == 10
        assert measured.is_complete
        with pytest.raises(MisuseError, match="beyond the 10 updates that are planned"):
            follow(tmp_path / "log", log_of(losses, first, losses), study(10))


def test_evaluations_beyond_the_plan_are_a_mistake_too(tmp_path):
    text = "step,loss,norm,val\n10,1,1,\n11,,,1\n"
    assert follow(tmp_path / "log", text, study(10)).measured.losses == 1
    with pytest.raises(MisuseError, match="goes on to step 12"):
        follow(tmp_path / "log", f"{text}12,,,1\n", study(10))


def test_stop_after_ends_training_there_without_a_word_from_the_script(tmp_path):
    losses = [1.0 - i / 100 for i in range(100)]
    text = log_of(losses, 1, losses, val={0: 1, 20: 0.9, 40: 0.8, 60: 0.7})
    measured = follow(tmp_path / "log", text, study(100, stop_after=40)).measured
    assert measured.is_over
    assert not measured.is_infeasible
    assert measured.is_complete
    assert measured.curve().eval_step.tolist() == [0, 20, 40]
    assert len(measured.curve().loss) == 40


@pytest.mark.parametrize(
    ("first", "every", "count", "is_complete"),
    [
        (1, 1, 100, True),
        (1, 1, 99, False),
        (0, 1, 100, True),
        (10, 10, 10, True),
        (10, 10, 9, False),
        (0, 10, 10, True),
        (0, 30, 4, True),
        (30, 30, 3, True),
        (0, 30, 3, False),
    ],
)
def test_a_log_is_complete_up_to_its_own_spacing(first, every, count, is_complete, tmp_path):
    text = log_of([1.0] * count, first, every=every)
    assert follow(tmp_path / "log", text, study()).measured.is_complete == is_complete


@pytest.mark.parametrize(
    ("first", "every", "count", "last", "is_evaluated"),
    [
        (1, 1, 100, 100, True),
        (1, 1, 100, 99, False),
        (0, 1, 100, 99, True),
        (0, 1, 100, 100, True),
        (0, 10, 10, 90, False),  # the next would be of step 100
        (0, 50, 2, 50, False),
        (0, 50, 2, 60, False),
        (10, 10, 10, 100, True),
        (10, 10, 9, 90, False),
        (9, 10, 10, 99, True),
        (49, 50, 2, 99, True),
    ],
)
def test_a_log_tells_of_its_end_where_the_last_update_is_evaluated(
    first, every, count, last, is_evaluated, tmp_path
):
    text = log_of([1.0] * count, first, every=every, val={first: 1, last: 0.5})
    if last > first + every * (count - 1):
        text += f"{last},,,0.5\n"
    measured = follow(tmp_path / "log", text, study()).measured
    assert measured.is_evaluated_at_end == is_evaluated


def test_losses_that_are_missing_in_the_middle_do_not_stand_for_those_of_the_end(tmp_path):
    steps = [*range(1, 11), *range(56, 66)]
    text = "\n".join(["step,loss,norm,val", *(f"{step},1,1,1" for step in steps), ""])
    assert not follow(tmp_path / "log", text, study()).measured.is_evaluated_at_end


CUT = "step,loss,norm,val\n1,1,1,1\n2,1,1,0."  # 0.8, say
WHOLE = '{"step": 1, "loss": 1, "norm": 1, "val": 1}\n{"step": 2, "loss": 1, "norm": 1, "val": 0}'


@pytest.mark.parametrize(
    ("text", "status", "val"),
    [(CUT, 0, [1.0, 0.0]), (CUT, -6, [1.0]), (WHOLE, -6, [1.0, 0.0]), (WHOLE[:-1], -6, [1.0])],
)
def test_a_number_that_may_be_cut_off_does_not_count(text, status, val, tmp_path):
    measured = follow(tmp_path / "log", text, study(2), status).measured
    assert measured.curve().metrics["val"].tolist() == val


def test_a_log_that_is_written_anew_is_read_anew(tmp_path):
    """As Lightning's does once a column is new: the file is the same, its first line is not."""
    path = tmp_path / "log"
    path.write_text("step,loss,norm\n1,1,1\n2,0.9,1\n")
    follower = LogFollower(path, study(), POINT)
    follower.read()
    assert follower.measured.losses == 2
    path.write_text("step,loss,norm,val\n1,1,1,\n2,0.9,1,\n2,,,5\n3,0.8,1,\n")
    follower.read()
    assert follower.measured.losses == 3
    assert follower.measured.curve().metrics["val"].tolist() == [5]
    path.write_text("step,loss,norm,val\n1,1,1,\n")  # shorter
    follower.read()
    assert follower.measured.losses == 1
    path.with_name("new").write_text("step,loss,norm,val\n1,7,1,\n2,7,1,\n3,7,1,\n4,7,1,\n5,7,1,\n")
    path.with_name("new").replace(path)  # another file
    follower.read()
    assert follower.measured.curve().loss.tolist() == [7] * 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "log: the command did not write "),
        ("", "has no column 'step'; it has none"),
        ("step,train_loss,norm,val\n1,1,1,1\n", "has no column 'loss'; it has step, train_loss"),
        ("step,loss,val\n1,1,1\n", "has no column 'norm'; it has step, loss, val"),
        ("step,loss,norm\n1,1,1\n", "has no column 'val'; it has step, loss, norm"),
        ("step,loss,norm,val\n1,,,1\n", "has no loss in column 'loss'"),
        ("step,loss,norm,val\n1,1,1,\n", "has no value in column 'val'"),
    ],
)
def test_what_a_log_lacks_is_named(text, said, tmp_path):
    path = tmp_path / "log"
    if text is not None:
        path.write_text(text)
    follower = LogFollower(path, study(), POINT)
    follower.read(status=0)
    with pytest.raises(MisuseError) as error:
        follower.check_log()
    assert said in str(error.value)


def test_a_long_log_is_read_in_seconds(tmp_path):
    count = 20_000
    measured, began = Measured(study(count), POINT), time.perf_counter()
    for step in range(count):
        measured.add(Row(step + 1, 1.0 / (step + 1), 1.0))
    assert time.perf_counter() - began < 20
    assert measured.is_complete
    assert np.isfinite(measured.curve().loss).all()
