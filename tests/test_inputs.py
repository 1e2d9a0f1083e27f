"""What a user may get wrong: one clear error with file, key and value, status 2, at once, and no
folder left behind.

Or it simply works, where that is what a user expects.
"""

import os
import time
from pathlib import Path

import pytest
import torch
from examples import WORKLOAD

from tunewright.search.cli import main
from tunewright.search.store.storage import create_store
from tunewright.search.study.study import MOST_BYTES, load_study

SECONDS = 10  # of one wrong input on a busy machine; most take milliseconds
BASE = {
    "workload": '"line_workload:make"',
    "objective": '"val_loss"',
    "max_train_steps": "40",
    "batch_sizes": "[8]",
    "trials": "2",
    "evaluations": "4",
}
SPACE = "[space.optimizer.sgd]\nbase_lr = { low = 1e-3, high = 1e-1, log = true }\n"
DIGITS = "9" * 5000  # more than Python reads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every command of this file runs, with a workload in it."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "line_workload.py").write_text(WORKLOAD)
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def study(args="", space=SPACE, **changes):
    """A study file: keys changed to other TOML text, None leaves one out; tables as text."""
    keys = {key: value for key, value in (BASE | changes).items() if value is not None}
    lines = [f"{key} = {value}" for key, value in keys.items()]
    table = [] if args is None else ["[workload_args]", args]
    return "\n".join([*lines, *table, space])


def refused(arguments, words, capsys, before=None):
    """Run a wrong command: its one message has the words, and nothing is there that was not
    before.
    """
    before, began = tree() if before is None else before, time.perf_counter()
    try:
        status = main(arguments)
    except SystemExit as stopped:  # of argparse
        status = stopped.code
    seconds = time.perf_counter() - began
    message = capsys.readouterr().err
    assert status == 2, message
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert len(message) < 7000
    assert seconds < SECONDS
    assert tree() == before


def tree():
    return sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts)


def range_of(low, high, more="log = true"):
    return f"[space.optimizer.sgd]\nbase_lr = {{ low = {low}, high = {high}, {more} }}\n"


def many(count):
    return "[" + ", ".join(map(str, range(1, count + 1))) + "]"


LONG_LISTS = "\n".join(f"a{i} = {many(100)}" for i in range(4))
MANY_LISTS = "\n".join(f"a{i} = [1, 2]" for i in range(20_000))
UNKNOWN_KEYS = {f"key_{i}": "1" for i in range(2_000)}
WRONG_STUDIES = {
    # sizes
    "a billion trials": ({"trials": "1_000_000_000"}, ["trials", "1000000", "got 1000000000"]),
    "a million trials of two batch sizes": (
        {"trials": "1_000_000", "batch_sizes": "[8, 16]"},
        ["trials", "1000000", "got 2000000"],
    ),
    "a million seeds of two trials": ({"seeds": "1_000_000"}, ["trials", "got 2000000"]),
    "a grid of ten to the ten": (
        {
            "trials": None,
            "sampler": '"grid"',
            "space": range_of(1e-3, 1e-1, "log = true, points = 100_000")
            + "weight_decay = { low = 0.0, high = 1.0, points = 100_000 }\n",
        },
        ["s.toml", "space.optimizer.sgd.weight_decay: unknown key"],
    ),
    "a grid of ten to the ten points": (
        {
            "trials": None,
            "sampler": '"grid"',
            "space": range_of(1e-3, 1e-1, "log = true, points = 100_000")
            + "clip_norm = { low = 0.1, high = 1.0, points = 100_000 }\n",
        },
        ["s.toml: sampler", "1000000", "got 10000000000"],
    ),
    "one axis of a billion points": (
        {
            "trials": None,
            "sampler": '"grid"',
            "space": range_of(1e-3, 1e-1, "points = 1_000_000_000"),
        },
        ["base_lr.points", "1000000", "got 1000000000"],
    ),
    "ten thousand batch sizes": (
        {"batch_sizes": many(10_000)},
        ["batch_sizes", "1 to 100 values, got 10000"],
    ),
    "a batch of a trillion": (
        {"batch_sizes": "[1_000_000_000_000]"},
        ["batch_sizes.0", "got 1000"],
    ),
    "lists that make a hundred million groups": (
        {"args": LONG_LISTS, "trials": "1_000_000"},
        ["scientific", "100000000 groups", "a0"],
    ),
    "groups beyond counting": (
        {"args": MANY_LISTS},
        ["scientific", "a very long int groups"],
    ),
    "a list of twenty thousand values": (
        {"args": f"a = {many(20_000)}"},
        ["workload_args.a", "1 to 10000 values, got 20000"],
    ),
    "a trillion updates": (
        {"max_train_steps": "10_000_000_000_000"},
        ["max_train_steps", "10000000"],
    ),
    "a trillion evaluations": ({"evaluations": "1_000_000_000_000"}, ["evaluations", "100000"]),
    "seed of 65 bits": ({"seed": "18_446_744_073_709_551_616"}, ["seed", "2147483647"]),
    "seeds beyond the largest seed": (
        {"seed": "2_147_483_646", "seeds": "2"},
        ["seed", "2147483646 + 2"],
    ),
    "stop_after of a trillion": ({"stop_after": "1_000_000_000_000"}, ["stop_after"]),
    "keep_checkpoints of a trillion": (
        {"keep_checkpoints": "1_000_000_000_000"},
        ["keep_checkpoints"],
    ),
    "figure of a trillion": (
        {"space": SPACE + "[figure]\nsparse_every = 1_000_000_000_000\n"},
        ["figure.sparse_every"],
    ),
    # integers longer than anything
    "trials of thousands of digits": (
        {"trials": DIGITS},
        ["s.toml", "is not valid TOML", "digits"],
    ),
    "trials of hundreds of digits": (
        {"trials": "9" * 900},
        ["trials", "1000000", "900 characters"],
    ),
    "hexadecimal trials without end": (
        {"trials": "0x" + "F" * 9000},
        ["trials", "a very long int"],
    ),
    "an axis of hundreds of digits": (
        {"space": "[space.optimizer.sgd]\nbase_lr = " + "9" * 400},
        ["space.optimizer.sgd.base_lr", "64 bits"],
    ),
    "a range of hundreds of digits": ({"space": range_of(1, "9" * 400)}, ["base_lr"]),
    "hexadecimal range without end": ({"space": range_of(1, "0x" + "F" * 9000)}, ["base_lr"]),
    "an argument of hundreds of digits": (
        {"args": "a = " + "9" * 400},
        ["workload_args.a", "64 bits"],
    ),
    "a listed argument of hundreds of digits": (
        {"args": f"a = [1, {'9' * 400}]"},
        ["workload_args.a.1", "64 bits"],
    ),
    "warmup of hundreds of digits": (
        {"space": SPACE + "warmup_steps = " + "9" * 300},
        ["warmup_steps"],
    ),
    "warmup without end": ({"space": SPACE + "warmup_steps = inf"}, ["warmup_steps", "got inf"]),
    # nesting
    "lists in lists": (
        {"args": "a = " + "[" * 100_000 + "]" * 100_000},
        ["s.toml", "nested too deeply"],
    ),
    "lists in lists, a hundred": (
        {"args": "a = " + "[" * 100 + "1" + "]" * 100},
        ["workload_args.a", "must be a number, a text"],
    ),
    "tables in tables": (
        {"args": "a = " + "{ a = " * 90_000 + "1" + " }" * 90_000},
        ["s.toml", "nested too deeply"],
    ),
    "dotted keys": ({"args": ".".join(["a"] * 300_000) + " = 1"}, ["s.toml", "nested too deeply"]),
    "dotted keys, fifty": ({"args": ".".join(["a"] * 50) + " = 1"}, ["workload_args.a"]),
    "dotted keys of an axis": (
        {"space": "[space.optimizer.sgd." + " . ".join(["a"] * 2_000) + "]"},
        ["s.toml", "nested too deeply"],
    ),
    # ends of float64
    "low beyond float32": (
        {"space": range_of("1e-320", "1e-1")},
        ["base_lr", "1e-30", "got 1e-320"],
    ),
    "high beyond float32": (
        {"space": range_of("1e-3", "1e308")},
        ["base_lr", "1e+30", "got 1e+308"],
    ),
    "a product that overflows": ({"space": range_of("1e300", "1e308")}, ["base_lr", "got 1e+300"]),
    "low above high": ({"space": range_of("1.0", "1e-3")}, ["base_lr", "low < high"]),
    "low equal to high": ({"space": range_of("1.0", "1.0")}, ["base_lr", "low < high"]),
    "high without end": ({"space": range_of("1.0", "inf")}, ["base_lr", "low < high < inf"]),
    "high that is no number": ({"space": range_of("1.0", "nan")}, ["base_lr", "low < high < inf"]),
    "low that is no number": ({"space": range_of("nan", "1.0")}, ["base_lr"]),
    "low of 0 on a log axis": ({"space": range_of("0", "1.0")}, ["base_lr", "low > 0"]),
    "low below 0": (
        {"space": range_of("-1.0", "1.0", "log = false")},
        ["base_lr", "must be a number > 0"],
    ),
    "a value too small": (
        {"space": "[space.optimizer.sgd]\nbase_lr = 1e-320"},
        ["base_lr", "1e-30"],
    ),
    "listed values too large": (
        {"space": "[space.optimizer.sgd]\nbase_lr = [0.1, 1e300]"},
        ["base_lr", "got 1e+300"],
    ),
    "a base LR of nan": ({"space": "[space.optimizer.sgd]\nbase_lr = nan"}, ["base_lr", "nan"]),
    "a base LR of inf": ({"space": "[space.optimizer.sgd]\nbase_lr = inf"}, ["base_lr", "got inf"]),
    "a base LR of true": (
        {"space": "[space.optimizer.sgd]\nbase_lr = true"},
        ["base_lr", "got True"],
    ),
    "a base LR in quotes": (
        {"space": '[space.optimizer.sgd]\nbase_lr = "0.1"'},
        ["base_lr", "must be a number > 0, got '0.1'"],
    ),
    "a range in quotes": (
        {"space": range_of('"1e-3"', '"1e-1"')},
        ["base_lr.low", "must be a number"],
    ),
    "a range of booleans": (
        {"space": range_of("false", "true")},
        ["base_lr.low", "must be a number"],
    ),
    "log as a number": ({"space": range_of("1e-3", "1e-1", "log = 1")}, ["base_lr.log", "got 1"]),
    "a date as an axis": (
        {"space": "[space.optimizer.sgd]\nbase_lr = 2024-01-01"},
        ["base_lr", "must be a number", "datetime.date(2024, 1, 1)"],
    ),
    "lists as values of an axis": (
        {"space": "[space.optimizer.sgd]\nbase_lr = [[0.1], [0.2]]"},
        ["base_lr.0", "got [0.1]"],
    ),
    "an empty axis": (
        {"space": "[space.optimizer.sgd]\nbase_lr = []"},
        ["base_lr", "1 to 10000 values, got 0"],
    ),
    "equal values of an axis": (
        {"space": "[space.optimizer.sgd]\nbase_lr = [1, 1.0]"},
        ["base_lr", "values must differ"],
    ),
    "an empty range": (
        {"space": "[space.optimizer.sgd]\nbase_lr = {}"},
        ["base_lr.low", "is required"],
    ),
    "orders of magnitude of base LRs": (
        {"space": "[space.optimizer.sgd]\nbase_lr = { orders_of_magnitude = true }"},
        ["base_lr", "orders_of_magnitude is for warmup_steps"],
    ),
    "a decay that is none": ({"space": SPACE + "decay = [1, 2]"}, ["decay", "one of constant"]),
    "a momentum of 1": (
        {"space": "[space.optimizer.momentum]\nbase_lr = 0.1\nmomentum = 1"},
        ["momentum.momentum", "[0, 1)"],
    ),
    "half a warmup step": (
        {"space": SPACE + "warmup_steps = 0.5"},
        ["warmup_steps", "an integer ≥ 0"],
    ),
    # arguments of the workload
    "equal arguments": (
        {"args": "depth = [4, 4]"},
        ["workload_args.depth", "must differ", "[4, 4]"],
    ),
    "true and 1": (
        {"args": "flag = [true, 1]"},
        ["workload_args.flag", "must differ", "[True, 1]"],
    ),
    "0, 0.0 and false": ({"args": "drop = [0, 0.0, false]"}, ["workload_args.drop", "must differ"]),
    "no arguments": ({"args": "depth = []"}, ["workload_args.depth", "1 to 10000 values, got 0"]),
    "a date": (
        {"args": "depth = 2024-01-01"},
        ["workload_args.depth", "datetime.date(2024, 1, 1)"],
    ),
    "a time": (
        {"args": "depth = [07:32:00, 08:00:00]"},
        ["workload_args.depth.0", "datetime.time"],
    ),
    "nan": ({"args": "drop = nan"}, ["workload_args.drop", "nan"]),
    "nan in a list": ({"args": "drop = [nan, 0.1]"}, ["workload_args.drop.0", "nan"]),
    "lists in a list": ({"args": "depth = [[1, 2], [3]]"}, ["workload_args.depth.0", "got [1, 2]"]),
    "a table": ({"args": "depth = { a = 1 }"}, ["workload_args.depth", "got {'a': 1}"]),
    "a range": (
        {"args": "depth = { low = 1, high = 3 }"},
        ["workload_args.depth", "must be one value or a list of values, got a range"],
    ),
    "tables in a list": (
        {"args": "depth = [{ a = 1 }]"},
        ["workload_args.depth.0", "got {'a': 1}"],
    ),
    "arguments that are no table": (
        {"workload_args": "3", "args": None},
        ["workload_args", "got 3"],
    ),
    **{
        f"an argument named {column}": (
            {"args": f"{column} = [5, 6]"},
            [f"workload_args.{column}", "is also a column of trials.csv"],
        )
        for column in (
            *("number", "verdict", "instability", "onset_step", "best_value", "gain"),
            *("best_step", "initial_value", "last_loss", "clip_fraction", "seconds", "reason"),
        )
    },
    **{
        f"an argument named {name}": (
            {"args": f"{name} = 5"},
            [f"workload_args.{name}", "is also a hyperparameter"],
        )
        for name in ("optimizer", "seed", "base_lr", "warmup_steps", "clip_norm", "clip_z", "decay")
    },
    # types
    "trials in quotes": ({"trials": '"8"'}, ["trials", "must be a number, got '8'"]),
    "trials of true": ({"trials": "true"}, ["trials", "must be a number, got True"]),
    "half a trial": ({"trials": "2.5"}, ["trials", "got 2.5"]),
    "trials without end": ({"trials": "inf"}, ["trials", "got inf"]),
    "trials of nan": ({"trials": "nan"}, ["trials", "got nan"]),
    "trials as a list": ({"trials": "[1, 2]"}, ["trials", "got [1, 2]"]),
    "no trials": ({"trials": "0"}, ["trials", "got 0"]),
    "fewer than no trials": ({"trials": "-1"}, ["trials", "got -1"]),
    "a batch size without a list": ({"batch_sizes": "8"}, ["batch_sizes", "must be a list, got 8"]),
    "batch sizes as a text": ({"batch_sizes": '"8"'}, ["batch_sizes", "must be a list, got '8'"]),
    "batch sizes as a range": (
        {"batch_sizes": "{ low = 8, high = 64 }"},
        ["batch_sizes", "must be a list"],
    ),
    "a batch size of 0": ({"batch_sizes": "[0]"}, ["batch_sizes.0", "got 0"]),
    "a batch size of true": ({"batch_sizes": "[true]"}, ["batch_sizes.0", "got True"]),
    "equal batch sizes": ({"batch_sizes": "[8, 8.0]"}, ["batch_sizes", "must differ"]),
    "an objective that is a number": ({"objective": "3"}, ["objective", "got 3"]),
    "an objective that nobody returns": (
        {"objective": '"acc"'},
        ["objective", "val_loss", "'acc'"],
    ),
    "a workload without a factory": (
        {"workload": '"line_workload"'},
        ["workload", "package.module:factory"],
    ),
    "a workload from above": (
        {"workload": '".line_workload:make"'},
        ["workload", "package.module:factory"],
    ),
    "a workload with a zero byte": (
        {"workload": r'"a\u0000:b"'},
        ["workload", "package.module:factory"],
    ),
    "a workload that is a path": (
        {"workload": '"/etc/passwd:make"'},
        ["workload", "package.module:factory"],
    ),
    "a workload that is not there": (
        {"workload": '"nowhere_at_all:make"'},
        ["workload", "cannot import"],
    ),
    "a factory that is not there": (
        {"workload": '"line_workload:mke"'},
        ["workload", "has no 'mke'"],
    ),
    "warmup prepended by 1": ({"prepend_warmup": "1"}, ["prepend_warmup", "got 1"]),
    "accumulation that divides nothing": ({"accumulation": "3"}, ["accumulation", "must divide"]),
    "scientific as a text": ({"scientific": '"clip_norm"'}, ["scientific", "must be a list"]),
    "scientific twice": (
        {"scientific": '["clip_norm", "clip_norm"]', "space": SPACE + "clip_norm = [1.0, inf]"},
        ["scientific", "must differ"],
    ),
    "scientific that is no axis": ({"scientific": '["clip_nrm"]'}, ["scientific", "'clip_nrm'"]),
    "no space": ({"space": ""}, ["space: is required"]),
    "no optimizer": ({"space": "[space.optimizer]"}, ["space.optimizer", "at least one of sgd"]),
    "an optimizer as a number": (
        {"space": "[space.optimizer]\nsgd = 1"},
        ["space.optimizer.sgd", "got 1"],
    ),
    "an unknown key": ({"trails": "2"}, ["trails", "did you mean 'trials'?"]),
    "a key of thousands of letters": ({"k" * 5_000: "2"}, ["unknown key", "…"]),
    "thousands of unknown keys": (
        UNKNOWN_KEYS,
        ["key_0: unknown key", "and 1980 mistakes more"],
    ),
    "a sampler in capitals": ({"sampler": '"TPE"'}, ["sampler", "got 'TPE'"]),
}


@pytest.mark.parametrize(("changes", "words"), WRONG_STUDIES.values(), ids=WRONG_STUDIES)
def test_a_wrong_study_file_is_refused_before_anything_is_written(changes, words, capsys):
    Path("s.toml").write_text(study(**changes), encoding="utf-8")
    refused(["run", "s.toml"], ["s", *words], capsys)


WRONG_FILES = {
    "not there": (None, ["s.toml: cannot be read: No such file"]),
    "empty": (b"", ["s.toml: workload: is required"]),
    "latin 1": ('question = "größer"'.encode("latin-1"), ["s.toml", "UTF-8", "byte 14"]),
    "utf-16": (study().encode("utf-16"), ["s.toml", "UTF-8"]),
    "random bytes": (bytes(range(256)) * 10, ["s.toml", "is not valid TOML"]),
    "zero bytes": (b"\0" * 1000, ["s.toml", "is not valid TOML"]),
    "too long": (b"#" * (MOST_BYTES + 1), ["s.toml", f"more than {MOST_BYTES} bytes"]),
    "a key twice": (b"trials = 1\ntrials = 2", ["s.toml", "is not valid TOML"]),
    "json": (b'{"trials": 1}', ["s.toml", "is not valid TOML"]),
}


@pytest.mark.parametrize(("content", "words"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_is_no_study_is_refused(content, words, capsys):
    Path("s.toml").unlink(missing_ok=True)
    if content is not None:
        Path("s.toml").write_bytes(content)
    refused(["run", "s.toml"], words, capsys)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("...toml", ["...toml", "must not begin with a dot", "'..'"]),
        (".toml", ["'.toml'", "must not begin with a dot"]),
        (".hidden.toml", ["'.hidden'", "must not begin with a dot"]),
        ("a\nb.toml", [r"'a\nb'", "control characters"]),
        ("a\x1b[31m.toml", [r"\x1b[31m", "control characters"]),
        ("a\\b.toml", [r"'a\\b'", "control characters"]),
        ("what?.toml", ["'what?'"]),
        ("a#b.toml", ["'a#b'"]),
        ("x" * 200 + ".toml", ["at most 100 characters"]),
        (os.fsdecode(b"caf\xe9.toml"), [r"caf\udce9", "not UTF-8"]),
    ],
)
def test_a_name_that_no_results_folder_can_have_is_refused(
    name, words, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(study())
    refused(["run", name, "--results", "deep/results"], words, capsys)
    refused(["check", name], words, capsys)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("..", ["cannot be read: Is a directory"]),
        (".", ["cannot be read: Is a directory"]),
        ("/dev/zero", ["/dev/zero: cannot be read: it is a device"]),
        ("/dev/null", ["/dev/null: cannot be read: it is a device"]),
        ("pipe", ["pipe: cannot be read: it is a device or a pipe"]),
        ("line_workload.py/s.toml", ["cannot be read: Not a directory"]),
        ("loop", ["loop: cannot be read"]),
        ("x" * 5000, ["cannot be read: File name too long"]),
    ],
)
def test_what_is_no_file_is_refused_and_never_read_without_end(path, words, capsys):
    if not Path("pipe").exists():
        os.mkfifo("pipe")
        Path("loop").symlink_to("loop")
    refused(["run", path], words, capsys)


WRONG_OPTIONS = {
    "no workers": (["run", "s.toml", "--workers", "0"], ["--workers: 0 needs --listen"]),
    "workers below 0": (["run", "s.toml", "--workers", "-3"], ["--workers", "'-3'"]),
    "a billion workers": (
        ["run", "s.toml", "--workers", "1000000000"],
        ["--workers", "1000000000"],
    ),
    "workers without end": (["run", "s.toml", "--workers", DIGITS], ["--workers", "999…"]),
    "half a worker": (
        ["run", "s.toml", "--workers", "1.5"],
        ["--workers", "a whole number", "1.5"],
    ),
    "threads": (["run", "s.toml", "--threads", "1000000000"], ["--threads"]),
    "slots": (["run", "s.toml", "--slots", "1000000000"], ["--slots"]),
    "no device": (["run", "s.toml", "--device", ""], ["device: '' is not there"]),
    "a device that is none": (
        ["run", "s.toml", "--device", "abacus"],
        ["device: 'abacus' is not there"],
    ),
    "a device without numbers": (
        ["run", "s.toml", "--device", "meta"],
        ["device: 'meta' is not there"],
    ),
    "a comma too many": (["run", "s.toml", "--device", "cpu,"], ["device: '' is not there"]),
    "results in a file": (
        ["run", "s.toml", "--results", "s.toml"],
        ["s.toml/s: cannot be written"],
    ),
    "results nowhere": (
        ["run", "s.toml", "--results", "/proc/none"],
        ["/proc/none/s: cannot be written"],
    ),
    "a storage that is no URL": (
        ["run", "s.toml", "--storage", "nonsense"],
        ["storage: must be a URL"],
    ),
    "a storage of no kind": (
        ["run", "s.toml", "--storage", "abc://x/y"],
        ["storage: cannot open abc"],
    ),
    "the same study twice": (["run", "s.toml", "s.toml"], ["must differ in name"]),
    "the same study by another path": (["run", "s.toml", "./s.toml"], ["must differ in name"]),
    "budget": (["diagnose", "s.toml", "--budget", "0"], ["--budget", "'0'"]),
    "a budget of text": (["diagnose", "s.toml", "--budget", "many"], ["--budget", "'many'"]),
    "one seed": (["diagnose", "s.toml", "--seeds", "1"], ["--seeds", "one run has no spread"]),
    "a billion seeds": (["diagnose", "s.toml", "--seeds", "1000000000"], ["--seeds"]),
    "port": (["dashboard", "r", "--port", "99999"], ["--port", "65535", "'99999'"]),
    "a port below 0": (["dashboard", "r", "--port", "-1"], ["--port", "'-1'"]),
    "a port of text": (["dashboard", "r", "--port", "http"], ["--port", "'http'"]),
    "dashboard of nothing": (["dashboard", "nowhere"], ["nowhere: is not a results folder"]),
    "report of nothing": (["report", "nowhere"], ["nowhere: is not a results folder"]),
    "report of a file": (["report", "s.toml"], ["s.toml: is not a results folder"]),
    "compare without a file": (
        ["compare", "s.toml", "--baseline", "no.pt"],
        ["s.toml: must have exactly one"],
    ),
    "compare of nothing": (["compare", "nowhere", "--baseline", "no.pt"], ["nowhere"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_refused_before_anything_is_written(arguments, words, capsys):
    Path("s.toml").write_text(study())
    refused(arguments, words, capsys)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            {},
            {"trials": None, "sampler": '"grid"', "space": range_of(1e-3, 1e-1, "points = 3")},
            "sampler: was halton, is grid",
        ),
        ({"trials": "1", "seeds": "3"}, {"trials": "1"}, "seeds: was 3, is (absent)"),
        (
            {"trials": "1"},
            {"trials": "1", "seeds": "3", "sampler": '"tpe"'},
            "seeds: was (absent), is 3",
        ),
        ({}, {"trials": "1"}, "trials: was 2, is 1"),
    ],
)
def test_what_was_taken_out_of_a_file_with_results_is_said_in_words(
    before, now, words, tmp_path, capsys
):
    path = tmp_path / "s.toml"
    path.write_text(study(**before))
    create_store(load_study(path), tmp_path / "results")
    path.write_text(study(**now))
    refused(["run", str(path), "--results", str(tmp_path / "results")], [words], capsys)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="its GPU works")
@pytest.mark.parametrize("command", ["run", "diagnose", "scaling"])
def test_where_there_is_a_gpu_it_trains(command, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Path("s.toml").write_text(study(batch_sizes="[4, 8]"))
    refused([command, "s.toml"], ["device: 'cuda:0' is not there", "--device cpu"], capsys)


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        study().encode(),
        b"\xef\xbb\xbf" + study().encode(),  # a byte order mark
        study().replace("\n", "\r\n").encode(),
        study(max_train_steps="4e1").encode(),
        study(question='"größer, Ω und 漢字?"').encode(),
        study(args='text = ["<img src=x onerror=alert(1)>", "b, c=\\"1\\""]').encode(),
        study(args="mixed = [true, 2, 0.5, 'half']", trials="4").encode(),
        study(args="drop = [inf, 0.1]").encode(),
        study(args="value = 1\nlist = 2\nrange = 3").encode(),
        study(space=range_of("1e-30", "1e30")).encode(),
    ],
)
def test_what_a_user_expects_to_work_does(content, capsys):
    Path("s.toml").write_bytes(content)
    assert main(["check", "s.toml"]) == 0
    assert "batch size 8, sgd" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["my study.toml", "größe.toml", "-.toml", "a{b}%20c.toml", "2026-11-26.v2.toml"]
)
def test_a_file_may_have_any_readable_name(name):
    Path(name).write_text(study())
    assert load_study(name).name == name.removesuffix(".toml")
    Path(name).unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": "1_000_000"},
        {
            "trials": "1_000_000",
            "sampler": '"sobol"',
            "space": SPACE + "warmup_steps = { low = 0, high = 4 }\n",
        },
        {"trials": "1_000_000", "sampler": '"tpe"', "prepend_warmup": "true"},
        {"trials": "10_000", "seeds": "100"},
        {
            "trials": None,
            "sampler": '"grid"',
            "space": range_of(1e-3, 1e-1, "points = 1000")
            + "clip_norm = { low = 0.1, high = 1.0, points = 1000 }\n",
        },
    ],
)
def test_a_million_planned_trials_are_checked_within_seconds(changes, capsys):
    Path("s.toml").write_text(study(**changes))
    began = time.perf_counter()
    assert main(["check", "s.toml"]) == 0
    assert time.perf_counter() - began < 5
    shown = capsys.readouterr().out
    assert "1000000" in shown or "10000 × 100 seeds" in shown
