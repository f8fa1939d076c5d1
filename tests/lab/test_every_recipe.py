"""Whatever recipe there is loads, runs and shows an example that works: a new method adds nothing here."""

import pytest

from foveal.catalog.loader import paper
from foveal.lab import available, load, run_recipe


@pytest.mark.parametrize("slug", available())
def test_recipe(slug, tmp_path):
    recipe = load(slug)
    assert paper(slug).slug == recipe.paper
    assert len(recipe.about) > 100, "the docstring tells what was measured and how"
    result = run_recipe(recipe, smoke=True, work=tmp_path).result
    assert len(result["claims"]) == len(recipe.claims)
    exec(recipe.example, {})
