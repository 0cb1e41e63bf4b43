"""The example under tests/example learns something, and all of it is on record."""

import json
import shutil
from collections import Counter

import pytest
from conftest import PROJECT

EXAMPLE = PROJECT / "tests" / "example"


@pytest.fixture
def example(repo):
    """Give a repo that has the example in it, committed."""
    folder = repo.path / "tests" / "example"
    shutil.copytree(str(EXAMPLE), str(folder), ignore=shutil.ignore_patterns("__pycache__"))
    repo.commit("Add the example")
    return repo


def read(path):
    return json.loads(path.read_text("utf-8"))


def test_the_recorded_accuracy_beats_guessing_the_commonest_species(example):
    result = example.run(None, "--epochs", 20, "--seed", 1, name="tests/example/train.py")
    assert result.code == 0, result
    folder = example.experiment(1)
    with (EXAMPLE / "iris.csv").open() as file:
        species = Counter(line.rsplit(",", 1)[1] for line in list(file)[1:])
    commonest = species.most_common(1)[0][1] / sum(species.values())
    assert read(folder / "summary.json")["test_accuracy"] > 2 * commonest
    assert (folder / "STATUS").read_text() == "SUCCESS"


def test_its_arguments_output_and_model_are_on_record(example):
    result = example.run(
        None, "--epochs", 3, "--lr", 0.02, "--description", "short", name="tests/example/train.py"
    )
    assert result.code == 0, result
    folder = example.experiment(1)
    assert read(folder / "args.json") == {"epochs": 3, "lr": 0.02, "seed": 0}
    assert read(folder / "default_args.json") == {"epochs": 50, "lr": 0.01, "seed": 0}
    assert read(folder / "metadata.json")["description"] == "short"
    assert (folder / "stdout").read_text() == result.stdout
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:3]] == [
        "epoch 1",
        "epoch 2",
        "epoch 3",
    ]
    assert len(read(folder / "model.json")["weights"]) == 3


def test_the_same_seed_gives_the_same_model(example):
    for seed in (5, 5, 6):
        example.run(None, "--epochs", 2, "--seed", seed, name="tests/example/train.py")
    models = [read(example.experiment(number) / "model.json") for number in (1, 2, 3)]
    assert models[0] == models[1] != models[2]
