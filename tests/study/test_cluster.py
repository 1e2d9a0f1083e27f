"""The [cluster] table, of a study or of a file of its own."""

import pytest
from examples import parse

from tunewright.search.errors import UserError
from tunewright.search.study.cluster import Cluster
from tunewright.search.study.study import load_cluster


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("gpu", 1, "cluster.gpu: unknown key; did you mean 'gpus'?"),
        ("gpus", 2, "cluster.gpus: should be less than or equal to 1, got 2"),
        ("cpus", 0, "cluster.cpus: should be greater than or equal to 1, got 0"),
        ("cpus", "8", "cluster.cpus: must be a whole number"),
        ("cpus", True, "cluster.cpus: must be a whole number"),
        ("memory", "16", "cluster.memory: must be a whole number and its unit"),
        ("memory", "0GB", "cluster.memory: must be a whole number and its unit"),
        ("time", "12:00", "cluster.time: must be hours:minutes:seconds"),
        ("time", "00:00:00", "cluster.time: must be hours:minutes:seconds"),
        ("time", 60, "cluster.time: should be a valid string, got 60"),
        ("partition", "a\n#SBATCH --qos=b", "cluster.partition: must be one line"),
        ("setup", ["a\nb"], "must be one line"),
        ("sbatch", {"--qos": "a"}, "options of sbatch without their dashes, got '--qos'"),
        ("sbatch", {"qos": "a\nb"}, "qos: must be a text of one line, a whole number, or true"),
        ("sbatch", {"qos": [1]}, "qos: must be a text of one line, a whole number, or true"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_rule(key, value, expected):
    with pytest.raises(UserError) as caught:
        parse(**{f"cluster__{key}": value})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("time", "minutes"), [("00:00:01", 1), ("12:00:00", 720), ("1-02:03:04", 26 * 60 + 4)]
)
def test_minutes_are_rounded_up(time, minutes):
    assert Cluster(time=time).minutes == minutes


@pytest.mark.parametrize(("memory", "size"), [("512M", 0.5), ("16GB", 16.0), ("1TB", 1024.0)])
def test_memory_in_gigabytes(memory, size):
    assert Cluster(memory=memory).gigabytes == size
    assert Cluster().gigabytes is None


def test_a_file_of_its_own_or_another_study(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('question = "Why?"\n[cluster]\ncpus = 4\n')
    assert load_cluster(path) == parse(cluster__cpus=4).cluster
    for text, expected in (
        ("cpus = 4", "cluster: is required"),
        ("[cluster]\ncpu = 4", "cluster.cpu: unknown key; did you mean 'cpus'?"),
        ("[cluster", "is not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            load_cluster(path)
        assert str(caught.value).startswith(f"{path}: {expected}")
