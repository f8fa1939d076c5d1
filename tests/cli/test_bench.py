"""`foveal bench`, called as the command calls it."""

import json
import sys
from pathlib import Path

import pytest
from lab.conftest import stand  # noqa: F401

from foveal.catalog.loader import papers, recipe_file
from foveal.cli import bench, main


@pytest.fixture
def place(stand):  # noqa: F811
    return stand


def test_one_summary(capsys, place):
    main(["bench", "--only", "limber"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["slug", "verdict", "seconds"]
    assert lines[1].split()[:2] == ["limber", "mixed"]
    assert json.loads(Path("foveal-results/limber.json").read_text())["slug"] == "limber"
    place.cells_run()
    main(["bench", "--only", "limber"])
    assert place.cells_run() == []


def test_smoke(capsys, place):
    main(["bench", "--only", "limber", "--smoke"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["limber", "runs"]
    assert len(place.cells_run()) == 3


def test_a_failing_recipe_does_not_stop_the_others(capsys, place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(bench, "chosen", lambda stage, only: ["sitta", "limber"])
    monkeypatch.delitem(sys.modules, "foveal.recipes.sitta", raising=False)
    broken = place.file.with_name("sitta.py")
    text = place.file.read_text().replace('paper="limber"', 'paper="sitta"')
    broken.write_text(text.replace("    note(run)\n", "    raise RuntimeError('broken')\n"))
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--smoke"])
    assert stopped.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "failed" in lines[1]
    assert "arm 'plain' failed at seed 0: RuntimeError: broken" in lines[1]
    assert "runs" in lines[2]


def test_what_is_chosen():
    having = [entry.slug for entry in papers() if recipe_file(entry).is_file()]
    assert bench.chosen(None, None) == having
    connect = [entry.slug for entry in papers() if entry.stage == "connect"]
    assert bench.chosen("connect", None) == [slug for slug in having if slug in connect]
    assert bench.chosen(None, "sitta, limber") == ["limber", "sitta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "limbre"], "slug='limbre' is not in the catalogue"),
        (["--only", "limber", "--stage", "decode"], "no paper has a recipe and fits"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# The matrix of pre-training -------------------------------------------------------------------------------------------

VALUES = {"retrieval": [40.0, 42.0, 44.0], "zero-shot": [50.0, 50.0, 50.0], "s/step": [0.1] * 3, "MiB": [40.0] * 3}


@pytest.fixture
def found():
    """A result of the matrix with two questions."""
    cost = {"parameters": 276_481}
    better = {**VALUES, "retrieval": [50.0, 53.0, 56.0]}
    wrong = {name: values for name, values in VALUES.items() if name != "zero-shot"}
    arms = {
        name: {"metrics": metrics, "cost": cost, "control": name == "shuffled"}
        for name, metrics in (("clip", VALUES), ("filip", better), ("shuffled", wrong))
    }
    claim = {
        "arm": "filip", "beats": "clip", "on": "retrieval", "by": 0.0, "lower": False, "published": "more",
        "difference": 11.0, "sd": 1.0, "interval": [8.5, 13.5], "verdict": "reproduced",
    }  # fmt: skip
    return {
        "arms": arms,
        "claims": [claim],
        "controls": [],
        "columns": {"retrieval": "R@1", "zero-shot": "names"},
        "smoke": False,
        "seeds": [0, 1, 2],
        "command": "foveal bench --only matrix",
        "hardware": {"cpu": "some", "cores": 2, "threads": 2, "gpu": None},
    }


def test_the_page_of_the_matrix(found):
    from foveal.cli import _bench_matrix

    page = _bench_matrix.markdown(_bench_matrix.MATRICES["matrix"], found, "matrix.png")
    lines = page.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| objective"))
    assert lines[header].count("|") == 7
    clip, filip, shuffled = lines[header + 2 : header + 5]
    assert clip.startswith("| clip | 42.0 [37.0, 47.0] | 50.0 [50.0, 50.0] | 276 k | 0.1 | 40 |")
    assert "53.0 [45.5, 60.5] ✓" in filip
    assert shuffled.startswith("| shuffled (control) | 42.0")
    assert _bench_matrix.UNASKED in shuffled
    assert "filip beats clip on retrieval" in page


def test_the_chart_of_the_matrix(found):
    from foveal.cli import _bench_matrix
    from foveal.lab.figures import png

    matrix = _bench_matrix.MATRICES["matrix"]
    drawn = png(_bench_matrix.chart(matrix, found))
    assert drawn.startswith(b"\x89PNG")
    assert drawn == png(_bench_matrix.chart(matrix, found))
    found["arms"]["filip"]["metrics"] = VALUES
    assert drawn != png(_bench_matrix.chart(matrix, found))


def test_the_matrix_runs(capsys, tmp_path, monkeypatch):
    """Two of the arms; all of them are a matter of minutes."""
    import dataclasses

    from foveal.recipes import _pretrain_matrix as matrix

    few = {name: matrix.RECIPE.arms[name] for name in ("clip", "grain", "more_texts", "shuffled")}
    claims = [claim for claim in matrix.RECIPE.claims if claim.arm in few]
    monkeypatch.setattr(matrix, "RECIPE", dataclasses.replace(matrix.RECIPE, arms=few, claims=claims))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    main(["bench", "--only", "matrix", "--smoke"])
    text = capsys.readouterr().out
    assert "hard negatives" in text
    result = json.loads(Path("foveal-results/smoke/pretrain_matrix.json").read_text())
    assert set(matrix.COLUMNS) <= set(result["arms"]["grain"]["metrics"])
    assert set(matrix.COLUMNS) - set(result["arms"]["shuffled"]["metrics"]) == {"noise"}
    assert "**A smoke run" in Path("foveal-results/smoke/pretrain_matrix.md").read_text()
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--only", "matrix", "--smoke", "--out", "docs/results"])
    assert stopped.value.code == 2


def few_arms(matrix, names, controls):
    """The recipe of a matrix on smol-vl with some of its arms."""
    import dataclasses

    claims = [claim for claim in matrix.RECIPE.claims if claim.arm in names]
    arms = {name: matrix.RECIPE.arms[name] for name in names}
    return dataclasses.replace(matrix.RECIPE, arms=arms, claims=claims, controls=controls)


def smoke_arms(monkeypatch, tmp_path, only, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    main(["bench", "--only", only, "--smoke"])
    assert Path(f"foveal-results/smoke/{name}/matrix.png").is_file()
    return json.loads(Path(f"foveal-results/smoke/{name}.json").read_text())["arms"]


def test_the_matrix_of_tokens_runs(capsys, tmp_path, monkeypatch):
    from foveal.recipes import _smol_tokens as matrix

    names = ("full", "fopru", "randomdrop")
    monkeypatch.setattr(matrix, "RECIPE", few_arms(matrix, names, ("randomdrop",)))
    arms = smoke_arms(monkeypatch, tmp_path, "tokens", "smol_tokens")
    assert "accuracy at 25 %" in capsys.readouterr().out
    assert all(set(matrix.COLUMNS) <= set(arm["metrics"]) for arm in arms.values())
    assert arms["full"]["metrics"]["FLOPs at 25 %"] == [100.0]
    assert arms["fopru"]["metrics"]["FLOPs at 25 %"][0] < arms["fopru"]["metrics"]["FLOPs at 50 %"][0] < 60
    assert "randomdrop (control)" in Path("foveal-results/smoke/smol_tokens.md").read_text()


def test_the_matrix_of_decoders_runs(capsys, tmp_path, monkeypatch):
    from foveal.recipes import _smol_decoders as matrix

    names = ("greedy", "damro", "agla", "shuffled")
    monkeypatch.setattr(matrix, "RECIPE", few_arms(matrix, names, ("shuffled",)))
    arms = smoke_arms(monkeypatch, tmp_path, "decoders", "smol_decoders")
    assert "CHAIR_i" in capsys.readouterr().out
    assert all(set(matrix.COLUMNS) <= set(arm["metrics"]) for arm in arms.values())


def test_where_less_is_better_less_is_coloured_as_better(found):
    import dataclasses

    from foveal.cli import _bench_matrix

    def colours(*less):
        matrix = dataclasses.replace(_bench_matrix.MATRICES["matrix"], less_is_better=less)
        figure = _bench_matrix.chart(matrix, found)
        return figure.axes[0].images[0].get_array()[1].tolist()  # filip: questions one after the other

    assert colours()[:2] == [11.0, 0.0]
    assert colours("retrieval")[:2] == [-11.0, 0.0]


def test_controls_that_do_as_well_are_told_once_for_each_claim(found):
    from foveal.cli import _bench_matrix

    rows = [("clip", True), ("shuffled", True), ("filip", False)]
    found["controls"] = [{"arm": "filip", "control": name, "on": "retrieval", "wins": wins} for name, wins in rows]
    told = _bench_matrix.beaten(found)
    assert told == ["filip (53.0) is no better on retrieval than the controls clip (42.0) and shuffled (42.0)."]
    page = _bench_matrix.markdown(_bench_matrix.MATRICES["matrix"], found, "matrix.png")
    assert f"- **{told[0]}**" in page


# The table of adapting ------------------------------------------------------------------------------------------------


def kept(arms, **more):
    """A result file with arms of (metrics, trained numbers, curves)."""
    arms = {
        name: {"metrics": metrics, "cost": {"trainable": trained}, "curves": curves, "control": False}
        for name, (metrics, trained, curves) in arms.items()
    }
    facts = {"smoke": False, "seeds": [0, 1, 2], "date": "2026-01-01", "source": "abc", "claims": [], "controls": []}
    return {"arms": arms, **facts, **more}


def scores(on, mean, **more):
    return {on: [mean - 1, mean, mean + 1], **{name: [value] * 3 for name, value in more.items()}}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results of four of the ten methods, one of them without the trained numbers, one of them in part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    names = ("random", "badge", "badge.pcb")
    rounds = [[[12, 40.0], [24, 50.0]], [[12, 42.0], [24, 52.0]]]
    bought = {"balanced accuracy": rounds}
    arms = {
        "svfit": {n: (scores("accuracy", 80 + i, trained=96 * i), 5000, {})
                  for i, n in enumerate(("head", "full", "lora.8", "lora.1", "svfit"))},
        "pcb": {"zero_shot": (scores("balanced accuracy", 30), 0, {}),
                **{n: (scores("balanced accuracy", 50 + i), 6144, bought) for i, n in enumerate(names)}},
        "nmtune": {n: (scores("OOD", 60 + i), None, {}) for i, n in enumerate(("lp", "mlp", "nmtune"))},
        "dclip": {"dclip": (scores("invented top-1", 20.0), 9_000_000, {})},
    }  # fmt: skip
    for slug, of in arms.items():
        (tmp_path / "foveal-results").mkdir(exist_ok=True)
        (tmp_path / "foveal-results" / f"{slug}.json").write_text(json.dumps(kept(of, slug=slug)))
    return tmp_path / "foveal-results"


def test_the_table_of_adapting(results, capsys):
    main(["bench", "--only", "adapt"])
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["svfit", "lora.8", "82.0", "[79.5,", "84.5]", "400", "192"] in [line[:7] for line in lines]
    assert ["pcb", "badge.pcb", "52.0", "[49.5,", "54.5]", "24", "6.14", "k"] in [line[:8] for line in lines]
    assert ["dclip", "dclip", "20.0", "[17.5,", "22.5]", "0", "0"] in [line[:7] for line in lines]  # it trains nothing
    assert ["nmtune", "mlp", "61.0", "[58.5,", "63.5]", "200", "–"] in [line[:7] for line in lines]
    assert "stic: not measured yet, `foveal run stic`" in text
    assert "nmtune: its result lacks trained of lp, trained of mlp, trained of nmtune" in text
    assert "dclip: its result lacks name" in text
    document = json.loads((results / "adapt.json").read_text())
    assert document["missing"].keys() == {
        "dclip",
        "adaptclipzs",
        "glov",
        "llm_bbo",
        "nmtune",
        "vladva",
        "povid",
        "stic",
    }
    row = next(row for row in document["rows"] if row["arm"] == "random")
    assert row["course"] == [[12, 41.0], [24, 51.0]]
    page = (results / "adapt.md").read_text()
    assert "| `svfit` | **svfit** | 84.0 [81.5, 86.5] | 400 | 384 |" in page
    assert "(adapt.png)" in page
    assert "- `stic`: not measured yet" in page
    drawn = (results / "adapt.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")

    other = json.loads((results / "svfit.json").read_text())
    other["arms"]["svfit"]["metrics"]["trained"] = [7.0] * 3
    (results / "svfit.json").write_text(json.dumps(other))
    main(["bench", "--only", "adapt"])
    assert (results / "adapt.png").read_bytes() != drawn


def test_the_table_of_adapting_ends_its_stage(results, capsys, monkeypatch):
    monkeypatch.setattr(bench, "chosen", lambda stage, only: ["svfit", "pcb"])
    monkeypatch.setattr(
        bench, "attempt", lambda slug, smoke, out: ("reproduced", 1.0, "broken" if slug == "pcb" else "")
    )
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--stage", "adapt"])
    assert stopped.value.code == 1
    assert "lora.8" in capsys.readouterr().out
    assert (results / "adapt.md").is_file()


def test_published_tables_of_adapting_lie_with_the_methods(results):
    published = results.rename(results.parent / "results")
    (results.parent / "docs").mkdir()
    published.rename(results.parent / "docs" / "results")
    main(["bench", "--only", "adapt", "--out", "docs/results"])
    assert "(../results/adapt.png)" in Path("docs/methods/adapt.md").read_text()
    assert Path("docs/results/adapt.json").is_file()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["--out", "empty"], "holds no result of dclip, "),
        ("{", [], "svfit.json is no result of the lab"),
        ('{"arms": {}}', [], "svfit.json is no result of the lab"),
        (None, ["--smoke", "--out", "docs/results"], "a smoke run"),
    ],
)
def test_bad_results_of_adapting_are_one_line(results, capsys, content, arguments, message):
    if content is not None:
        (results / "svfit.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--only", "adapt", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (results / "adapt.json").exists()


def test_the_table_of_adapting_knows_the_recipes():
    """Arms and numbers of labels are those of the recipes."""
    from foveal.cli._bench_adapt_figures import TASKS
    from foveal.lab.recipe import load
    from foveal.recipes import _fine_tuning, _povid_pairs, _preferences, _prompt_search, _species, _species_clip, stic
    from foveal.recipes._vladva_scenes import LESSONS

    for slug, task in TASKS.items():
        assert task.arms.keys() <= load(slug).arms.keys(), slug
    stated = {
        "adaptclipzs": _species_clip.SHOTS * _species.SPECIES // 2,
        "glov": 2 * len(_prompt_search.NOUNS),
        "llm_bbo": len(_prompt_search.NOUNS),
        "svfit": _fine_tuning.LABELS,
        "vladva": LESSONS,
        "povid": 2 * _povid_pairs.STEPS * _preferences.ROWS,
        "stic": stic.STEPS * _preferences.ROWS,
    }
    assert {slug: list(TASKS[slug].arms.values())[-1][0] for slug in stated} == stated
