"""The blocks of the README's section "With other tools", run with the real packages (`nox -s recipes`).

Each recipe's blocks run in a repository of their own. `<!-- recipe: NAME, N records -->` above a block names
the recipe, and how many records there are afterwards; all of them must be SUCCESS.
"""

import json

import pytest
from test_readme import make_clone, make_runner, read_blocks, run_block

pytestmark = pytest.mark.recipes


def group_blocks():
    """Return {(name, number of records): blocks} in the order of the README."""
    recipes = {}
    for block in read_blocks():
        if "recipe" in block.options:
            name, records = block.options["recipe"].split(", ")
            recipes.setdefault((name, int(records.split()[0])), []).append(block)
    return recipes


RECIPES = group_blocks()


@pytest.fixture
def clone(tmp_path_factory, module_folder):
    yield from make_clone(tmp_path_factory, module_folder)


@pytest.fixture
def run_command(clone, tmp_path_factory):
    return make_runner(clone, tmp_path_factory)


@pytest.mark.parametrize(("name", "records"), RECIPES)
def test_recipe_makes_its_records(name, records, clone, run_command):
    for block in RECIPES[name, records]:
        problem = run_block(block, clone, run_command)
        if problem:
            pytest.fail(f"README.md, line {block.line}: {problem}", pytrace=False)
    result = run_command("python meticulous.py experiments --json")
    assert result.code == 0, result
    assert [row["header.status"] for row in json.loads(result.stdout)["rows"]] == ["SUCCESS"] * records
