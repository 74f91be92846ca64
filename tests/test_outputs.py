"""Nothing that a user made is overwritten, in any command; what a command made is made anew."""

import json
import types

import numpy as np
import pytest
from dgp_fixture import write_recording
from result_scores import filled, write

from fsmde_jax import files
from fsmde_jax.benchmark import report as benchmark_report
from fsmde_jax.config import default_config
from fsmde_jax.data import teacher_cache
from fsmde_jax.data.readers import dgp
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import compare, measure, results, sparsification
from fsmde_jax.evaluate.depth_maps import Predictions
from fsmde_jax.prepare.check_rig.report import check as check_rig
from fsmde_jax.study import report


def _sparsification(folder):
    error = np.linspace(0.1, 1.0, 200)
    curves = sparsification.curves(error, 1 - error)
    sparsification.write(curves, "A title.", "demo in demo", folder)


def _evaluate(folder):
    results.refuse_foreign(folder, "run")
    write(folder, filled()[0])


def _study(folder):
    report.refuse_foreign(folder)
    files.write_json(folder / "study.json", {"arms": {}, "baseline": "supervised"})


def _cache(folder):
    teacher_cache.write_about(folder, {"samples": 0})


FOLDERS = {
    "evaluate": (_evaluate, "results.json"),
    "sparsification": (_sparsification, "sparsification.json"),
    "study": (_study, "study.json"),
    "cache_teacher": (_cache, "cache.json"),
}


@pytest.mark.parametrize("command", FOLDERS)
def test_a_report_is_written_into_no_folder_of_other_files(command, tmp_path):
    make, index = FOLDERS[command]
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / ".unfinished-a").touch()  # as a kill leaves it
    for _ in range(2):
        make(folder)
    assert (folder / index).is_file()
    (folder / "notes.txt").write_text("mine")
    make(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    for name in (index, "results.md", "photo.png"):
        other = tmp_path / f"of_{name}"
        other.mkdir()
        (other / name).write_text('{"abs_rel": 0.1}')
        with pytest.raises(UserError, match=name):
            make(other)
        assert [path.name for path in other.iterdir()] == [name]
        assert (other / name).read_text() == '{"abs_rel": 0.1}'
    with pytest.raises(UserError):
        make(folder / "notes.txt")


def test_evaluation_begins_with_looking_where_its_report_goes(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes.txt").touch()
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    for run in (
        lambda: measure.evaluate_run(default_config(), tmp_path),
        lambda: measure.evaluate_predictions(
            default_config(), Predictions(tmp_path), tmp_path / "report"
        ),
    ):
        with pytest.raises(UserError, match=r"report holds notes\.txt, and no results\.json"):
            run()
        (tmp_path / "report" / "notes.txt").rename(tmp_path / "notes.txt")
        busy = pytest.raises(files.BusyError, match="is writing the report")
        with files.owned(tmp_path / "report", ""), busy:
            run()
        (tmp_path / "notes.txt").rename(tmp_path / "report" / "notes.txt")

    results.write(tmp_path / "of_a", *_about("run in a"))
    with pytest.raises(UserError, match=r"of_a holds the report of 'run in a', and this is one of"):
        measure.evaluate_run(default_config(), tmp_path / "b", tmp_path / "of_a")


def test_a_report_that_was_cut_is_set_aside_and_made_anew(tmp_path, caplog):
    _evaluate(tmp_path)
    whole = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(whole[:100])
    results.refuse_foreign(tmp_path, "run")
    assert (tmp_path / "results.json.unreadable").read_text() == whole[:100]
    assert "was cut short or damaged" in caplog.text
    _evaluate(tmp_path)
    results.refuse_foreign(tmp_path, "run")
    assert (tmp_path / "results.json").read_text() == whole


def test_a_report_of_another_run_is_kept(tmp_path):
    content = _about("one")
    results.write(tmp_path, *content)
    results.refuse_foreign(tmp_path, "one")
    with pytest.raises(UserError, match=r"holds the report of 'one', and this is one of 'other'"):
        results.refuse_foreign(tmp_path, "other")
    results.refuse_foreign(tmp_path, None)


def _about(measured):
    scores, _ = filled()
    found = {"settings": {"protocol": "p"}, "scenes": 4, "text": "T", "measured": measured}
    return found, {"m": scores.compute(("one", "two", "three", "four"))}


def test_compare_replaces_only_comparisons(tmp_path, monkeypatch, capsys):
    scores, _ = filled()
    for name in "ab":
        write(tmp_path / name, scores)
    out = tmp_path / "c.json"
    monkeypatch.setattr(compare.flags, "FLAGS", types.SimpleNamespace(out=str(out)))
    (tmp_path / "b").rename(tmp_path / "of 12:00")
    arguments = ["compare", str(tmp_path / "a"), str(tmp_path / "of 12:00")]
    for _ in range(2):
        compare.main(arguments)
    assert json.loads(out.read_text())["abs_rel"]["difference"] == 0.0
    for content in ('{"abs_rel": 0.1}', "[1]", "text", (tmp_path / "a/results.json").read_text()):
        out.write_text(content)
        with pytest.raises(UserError, match=r"c\.json is there already and is nothing that this"):
            compare.main(arguments)
        assert out.read_text() == content
    monkeypatch.setattr(compare.flags, "FLAGS", types.SimpleNamespace(out=str(tmp_path / "a")))
    with pytest.raises(UserError, match="is nothing that this command wrote"):
        compare.main(arguments)


def test_benchmark_replaces_only_its_reports(tmp_path, capsys):
    out = tmp_path / "speed.md"
    for _ in range(2):
        benchmark_report.refuse_other(out)
        benchmark_report.write({"input": [{"samples / s": 1.0}]}, 1, out)
    assert json.loads((tmp_path / "speed.json").read_text())["input"] == [{"samples / s": 1.0}]
    for name, text in (("README.md", "no report of this"), ("speed.json", r"name a \.md file")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UserError, match=text):
            benchmark_report.refuse_other(tmp_path / name)
    with pytest.raises(UserError, match=r"speed\.json is there already"):
        benchmark_report.refuse_other(out)


def test_pictures_of_a_rig_are_drawn_among_no_other_files(tmp_path):
    write_recording(tmp_path / "raw")
    for _ in range(2):
        check_rig(dgp, tmp_path / "raw", ("val",), tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    (tmp_path / "pictures" / "mine.png").touch()
    with pytest.raises(UserError, match=r"holds mine\.png"):
        check_rig(dgp, tmp_path / "raw", ("val",), tmp_path / "pictures")
