"""CSV and JSON lines: what is read, guessed, left out, and refused."""

import json
import math
import re

import numpy as np
import pytest
from logged import LOSS, NORM, csv_of, healthy_csv, json_lines_of, with_nan

from tunewright.search.errors import UserError
from tunewright.search.judge.verdict import judge
from tunewright.search.logs.log import read_log
from tunewright.search.logs.roles import GivenColumns


def test_a_csv_is_read_with_guessed_columns(tmp_path):
    log = read_log(healthy_csv(tmp_path / "log.csv"))
    assert log.format == "CSV"
    assert log.guessed == {"step": "step", "loss": "loss", "grad_norm": "grad_norm"}
    np.testing.assert_array_equal(log.step, np.arange(200))
    np.testing.assert_array_equal(log.loss, LOSS)  # to the last bit
    np.testing.assert_array_equal(log.grad_norm, NORM)
    assert log.notes == (ALONE,)
    assert judge(log.curve()).outcome == "feasible"


def test_named_columns_are_not_guessed(tmp_path):
    path = csv_of(tmp_path / "log.csv", {"n": [3, 5], "a": [1.0, 2.0], "loss": [9, 9], "b": [4, 5]})
    log = read_log(path, GivenColumns(step="n", loss="a", objective="b"))
    assert log.guessed == {}
    assert (log.step.tolist(), log.loss.tolist()) == ([3, 5], [1.0, 2.0])
    assert log.objective == "b"
    assert [list(values) for values in log.metrics["b"]] == [[3, 5], [4.0, 5.0]]
    assert "loss" in log.metrics


ALONE = "There are no evaluations: the training losses alone are judged."
NOT_FINITE = ["nan", "NaN", "inf", "-Infinity", "Infinity"]


@pytest.mark.parametrize("text", NOT_FINITE)
@pytest.mark.parametrize("kind", ["csv", "json text", "json"])
def test_a_loss_that_is_not_finite_in_text_is_one(tmp_path, text, kind):
    cells = [2.0, 1.5, text, text]
    if kind == "csv":
        path = csv_of(tmp_path / "log.csv", {"step": range(4), "loss": cells})
    else:
        values = cells if kind == "json text" else [2.0, 1.5, float(text), float(text)]
        records = [{"step": step, "loss": value} for step, value in enumerate(values)]
        path = json_lines_of(tmp_path / "log.jsonl", records)
    log = read_log(path)
    np.testing.assert_array_equal(log.loss, [2.0, 1.5, float(text), float(text)])
    verdict = judge(log.curve())
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 2)


@pytest.mark.parametrize("cell", ["", "null", "None"])
def test_a_cell_that_is_empty_is_not_logged(tmp_path, cell):
    path = csv_of(tmp_path / "log.csv", {"step": range(6), "loss": [2, cell, 1.5, cell, 1, cell]})
    log = read_log(path)
    assert (log.step.tolist(), log.loss.tolist()) == ([0, 2, 4], [2.0, 1.5, 1.0])
    records = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": None}, {"step": 2}]
    assert read_log(json_lines_of(tmp_path / "log.jsonl", records)).loss.tolist() == [2.0]


def test_rows_that_hold_some_columns_only(tmp_path):
    records = [
        *({"step": step, "loss": 2.0 - 0.01 * step, "lr": 0.1} for step in range(50)),
        {"step": 50, "val_loss": 1.0, "epoch": 0},
        *({"step": step, "loss": 1.0, "lr": 0.1} for step in range(50, 100)),
        {"step": 100, "val_loss": 0.9, "epoch": 1},
    ]
    log = read_log(json_lines_of(tmp_path / "log.jsonl", records))
    assert len(log.loss) == 100
    assert log.guessed["objective"] == "val_loss"
    assert [list(values) for values in log.metrics["val_loss"]] == [[50, 100], [1.0, 0.9]]
    assert log.curve().losses_before(50) == 50


def test_losses_that_are_logged_rarely_keep_their_steps_and_say_so(tmp_path):
    loss = LOSS.copy()
    loss[120:] = math.nan
    log = read_log(healthy_csv(tmp_path / "log.csv", every=100, loss=loss))
    verdict = judge(log.curve())
    assert verdict.onset_step == 12_000
    assert "step 12000" in verdict.evidence
    note, _ = log.notes
    assert note.startswith("Losses are logged every 100 steps: an instability that comes and goes")
    assert "between two of them is not seen (R5)" in note
    assert "an onset is known to within 100 steps" in note


def test_losses_at_uneven_steps_say_how_far_they_are_apart(tmp_path):
    steps = [*range(0, 1000, 10), *range(5000, 6000, 10)]
    path = csv_of(tmp_path / "log.csv", {"step": steps, "loss": LOSS})
    assert "every 10 steps, at the most 4010 apart:" in read_log(path).notes[0]


def test_a_loss_that_ends_before_the_log_does_is_said(tmp_path):
    """As a table of pandas leaves what was nan."""
    cells = [None if math.isnan(value) else value for value in with_nan(150)]
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": cells, "lr": [0.1] * 200})
    said = "The last loss is of step 149, and the log goes on to step 199: if losses that are nan"
    assert any(note.startswith(said) for note in read_log(path).notes)


def test_a_log_of_evaluations_alone(tmp_path):
    path = csv_of(tmp_path / "log.csv", {"step": [0, 100, 200], "val_loss": [2.3, 1.0, 0.5]})
    log = read_log(path)
    assert len(log.loss) == 0
    assert "There are no training losses: the evaluations alone are judged." in log.notes
    assert judge(log.curve(), log.objective).evidence.startswith("the objective was learned")


def test_a_log_without_steps_counts_rows(tmp_path):
    log = read_log(csv_of(tmp_path / "log.csv", {"loss": [3.0, 2.0, 1.0]}))
    assert log.step.tolist() == [0, 1, 2]
    assert log.notes == ("There is no column of steps: rows are counted.", ALONE)


def test_steps_of_wandb_may_be_no_updates(tmp_path):
    records = [{"_step": step, "loss": 1.0} for step in range(3)]
    note, _ = read_log(json_lines_of(tmp_path / "log.jsonl", records)).notes
    assert note.startswith("_step counts calls of wandb.log, which may be no updates: name")


def test_a_row_without_a_step_is_of_the_last_step(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,val_loss\n,9,\n0,2,\n7,1,\n,,3\n")
    log = read_log(path)
    assert log.loss.tolist() == [2, 1]
    assert log.metrics["val_loss"][0].tolist() == [7]


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_other_delimiters(tmp_path, delimiter):
    path = healthy_csv(tmp_path / "log.csv")
    path.write_text(path.read_text().replace(",", delimiter))
    np.testing.assert_array_equal(read_log(path).loss, LOSS)


def test_windows_lines_and_a_byte_order_mark(tmp_path):
    path = healthy_csv(tmp_path / "log.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    log = read_log(path)
    assert log.guessed["step"] == "step"
    np.testing.assert_array_equal(log.loss, LOSS)


def test_old_macs_lines(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"step,loss\r0,2.0\r1,1.0\r")
    assert read_log(path).loss.tolist() == [2.0, 1.0]


def test_a_cell_may_be_long(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(f"step,loss,weights\n0,2.0,{'x' * 200_000}\n1,1.0,y\n")
    assert read_log(path).loss.tolist() == [2.0, 1.0]


def test_a_json_list_of_objects(tmp_path):
    path = tmp_path / "log.json"
    records = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": "NaN"}, {"step": 1, "val_loss": 3}]
    path.write_text(json.dumps(records, indent=2))
    log = read_log(path)
    assert (log.format, log.step.tolist()) == ("JSON list", [0, 1])
    assert log.metrics["val_loss"][1].tolist() == [3.0]
    path.write_text(json.dumps(records)[:-5])
    with pytest.raises(UserError, match="is damaged"):
        read_log(path)
    path.write_text('[{"step": 1}, 2]')
    with pytest.raises(UserError, match="is no list of objects alone"):
        read_log(path)


def test_quoted_cells_and_columns_of_text_are_passed_over(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        'step,"a, b",loss,when\n0,"x, ""y""",2.0,2026-01-01\n1,"[1,2]",1.0,2026-01-02\n'
    )
    assert read_log(path).loss.tolist() == [2.0, 1.0]


def test_a_number_that_is_cut_off_is_no_number(tmp_path):
    """A last line without an end may lack digits."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n0,2.0\n1,1.53\n2,0.0")
    log = read_log(path)
    assert log.loss.tolist() == [2.0, 1.53]
    assert "The last line has no end: it may be half of one" in log.notes[0]


@pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 3, "loss": 1.'])
def test_half_a_last_json_line_is_left_out(tmp_path, end):
    path = json_lines_of(tmp_path / "log.jsonl", [{"step": n, "loss": 2.0} for n in range(3)])
    path.write_text(path.read_text() + end)
    log = read_log(path)
    assert len(log.loss) == 3
    assert "The last line is half of one" in log.notes[0]


def test_a_whole_last_json_line_needs_no_end(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}')
    log = read_log(path)
    assert (log.loss.tolist(), log.notes) == ([2.0, 1.0], (ALONE,))


def test_lines_that_are_not_whole_are_left_out_and_counted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,lr\n0,2,1\n1,2\n2,2,1\nstep,loss,lr\n3,2,1,7\n4,2,1\n\n5,2,1\n")
    log = read_log(path)
    assert log.step.tolist() == [0, 2, 4, 5]
    assert "2 lines are not whole, and left out." in log.notes
    lines = tmp_path / "log.jsonl"
    lines.write_text('{"step": 0, "loss": 2}\n{"step": 1, "l\n\n[1]\n{"step": 2, "loss": 1}\n')
    log = read_log(lines)
    assert log.step.tolist() == [0, 2]
    assert "2 lines are not whole, and left out." in log.notes


def test_a_norm_that_is_not_finite_before_a_finite_loss_was_skipped(tmp_path):
    """So does a scaler of half precision, until it has found its scale."""
    norm = NORM.copy()
    norm[[0, 3]] = math.inf, math.nan
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": LOSS, "grad_norm": norm})
    log = read_log(path)
    assert judge(log.curve()).feasible
    assert "2 gradient norms are not finite, with finite losses after" in " ".join(log.notes)
    norm[-1] = math.inf
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": LOSS, "grad_norm": norm})
    verdict = judge(read_log(path).curve())
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 199)


def test_losses_that_are_finite_again_are_said(tmp_path):
    loss = LOSS.copy()
    loss[5] = math.nan
    log = read_log(healthy_csv(tmp_path / "log.csv", loss=loss))
    assert judge(log.curve()).outcome == "non_finite"
    said = (
        "Losses are finite again from step 6 on: if only updates between were skipped, as in mixed "
        "precision, the training is sound, whatever its verdict."
    )
    assert log.notes == (said, ALONE)


def test_norms_at_other_steps_than_losses(tmp_path):
    """Each loss has the last norm since the loss before, and none is lost that is not finite."""
    loss = [2.0, None, None, 1.5, None, None, 1.0]
    norm = [None, 7.0, 8.0, None, None, None, None]
    path = csv_of(tmp_path / "log.csv", {"step": range(7), "loss": loss, "grad_norm": norm})
    log = read_log(path)
    assert log.grad_norm.tolist() == [7.0, 8.0]
    assert log.curve().grad_norm.tolist() == [8.0, 8.0, 8.0]
    norm[4:6] = math.nan, 5.0
    loss[6] = math.nan
    path = csv_of(tmp_path / "log.csv", {"step": range(7), "loss": loss, "grad_norm": norm})
    np.testing.assert_array_equal(read_log(path).curve().grad_norm, [8.0, 8.0, math.nan])


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "nothing": (b"", "is empty"),
    "blank": (b"\n\n", "is empty"),
    "names alone": (b"step,loss\n", "has no rows"),
    "no names": (b"0,2.0\n1,1.0\n", "has no line of names: its first line holds numbers"),
    "the same name": (b"step,loss,loss\n0,1,2\n", "two columns are named 'loss'"),
    "binary": (bytes(range(256)) * 300, "is of no format that is known: TensorBoard event files, "),
    "binary after names": (b"step,loss\n" + bytes(range(128, 256)), "is no text in UTF-8, byte"),
    "NUL": (b"step,loss\n0,1\n\0\0\0,1\n1,1\n", "column 'step' holds text: .* in row 2; name"),
    "a loss of text": (b"step,loss\n0,1\n1,oops\n", "'loss' holds text: 'oops' in row 2; name"),
    "prose": (b"It was good, then bad.\nNobody knows, why, or\nwhen, if, ever.\n", "no table"),
    "one JSON object": (b'{\n"a": 1,\n"b": 2\n}\n', "4 of 4 lines are no JSON objects"),
    "no loss": (b"step,lr\n0,0.1\n", r"name it by --loss or --objective; it has step, lr$"),
    "steps in part": (b"step,loss\n0.5,1\n", "column 'step' holds 0.5: steps are whole numbers"),
    "steps below 0": (b"step,loss\n-1,1\n", "column 'step' holds -1: steps are whole numbers"),
    "steps nan": (b"step,loss\nnan,1\n", "column 'step' holds nan: steps are whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_log_is_refused_in_a_sentence(tmp_path, name):
    content, sentence = REFUSED[name]
    path = tmp_path / "some.log"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_log(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            GivenColumns(loss="cost"),
            "--loss: no column 'cost'; it has step, loss, other, when (text)",
        ),
        (GivenColumns(loss="when"), "--loss: column 'when' holds text: 'monday' in row 1"),
        (GivenColumns(grad_norm="other"), "--grad-norm: column 'other' is empty"),
    ],
)
def test_a_column_that_is_not_there_or_holds_text(tmp_path, columns, sentence):
    path = csv_of(
        tmp_path / "log.csv",
        {"step": [0, 1], "loss": [2, 1], "other": [None, None], "when": ["monday", "tuesday"]},
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_log(path, columns)


def test_a_column_with_one_text_says_where(tmp_path):
    path = csv_of(tmp_path / "log.csv", {"step": range(3), "loss": [2, 1, "oops"]})
    with pytest.raises(UserError, match="column 'loss' holds text: 'oops' in row 3"):
        read_log(path, GivenColumns(loss="loss"))
    assert read_log(path, GivenColumns(loss="step")).loss.tolist() == [0, 1, 2]


def test_true_is_no_number(tmp_path):
    path = json_lines_of(tmp_path / "log.jsonl", [{"step": 0, "loss": 1.0, "best": True}])
    with pytest.raises(UserError, match="column 'best' holds text: True in row 1"):
        read_log(path, GivenColumns(loss="best"))


def test_a_whole_number_of_hundreds_of_digits_is_no_loss(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "loss": 1' + "0" * 400 + '}\n{"step": 1, "loss": 1}\n')
    with pytest.raises(UserError, match="holds text"):
        read_log(path, GivenColumns(loss="loss"))


def test_json_lines_and_csv_of_the_same_log_are_the_same(tmp_path):
    records = [
        {"step": step, "loss": loss, "grad_norm": norm}
        for step, (loss, norm) in enumerate(zip(LOSS.tolist(), NORM.tolist(), strict=True))
    ]
    lines = read_log(json_lines_of(tmp_path / "log.jsonl", records))
    table = read_log(healthy_csv(tmp_path / "log.csv"))
    assert lines.format == "JSON lines"
    assert lines.curve() == table.curve()
    assert json.dumps(lines.guessed) == json.dumps(table.guessed)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("every", [1, 100])
def test_short_logs_are_judged(tmp_path, length, every):
    for broken in range(length + 1):
        loss = [2.0 - 0.1 * place for place in range(length)]
        loss[broken:] = [math.nan] * (length - broken)
        steps = every * np.arange(length)
        path = csv_of(tmp_path / "log.csv", {"step": steps, "loss": loss, "val_loss": loss})
        verdict = judge(read_log(path).curve(), "val_loss")
        assert verdict.feasible == (broken == length)
        if broken < length:
            assert verdict.onset_step == every * broken


def test_a_first_evaluation_of_a_model_that_has_learned_is_said(tmp_path):
    for first, said in ((0, False), (1, False), (100, True)):
        columns = {"step": [0, first, 200], "loss": [2, 1, 1], "val_loss": [None, 2, 1]}
        log = read_log(csv_of(tmp_path / "log.csv", columns))
        notes = [note for note in log.notes if note.startswith("The first evaluation is of step")]
        assert bool(notes) == said
        assert ALONE not in log.notes
