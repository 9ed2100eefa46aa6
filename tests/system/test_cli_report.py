"""``cmtvision report`` and ``compare-runs`` as a person types them; and the page in a real browser."""

import json
import shutil

import pytest
from cli_process import assert_one_error, run_cli


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """(a copy of the run, the finished process) of ``report --json``."""
    run = shutil.copytree(trained[0], tmp_path_factory.mktemp("report") / "run")
    done = run_cli("report", run, "--json", "--corruptions", "--num-images", "1", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    return run, done


def test_the_report_says_what_eval_says(reported, trained):
    run, done = reported
    said, before = json.loads(done.stdout), json.loads((run / "evaluation.json").read_text())
    assert said["num_images"] == before["num_images"]
    assert said["top1"]["value"] == pytest.approx(before["top1"])
    assert said["robustness"]["num_images"] == 1
    assert said["report"] == str(run / "report.html")
    assert (run / "README.md").read_text().startswith("---\n")
    assert any("very uncertain" in line for line in said["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_sound_in_a_browser(reported, open_page, dark):
    found = open_page(reported[0] / "report.html", width=390 if dark else 1280, dark=dark)
    found.assert_sound()
    assert found.pictures > 15


def test_two_runs_are_compared_and_a_page_is_written(reported, mixed_photos, tmp_path):
    run, _ = reported
    twin = shutil.copytree(run, tmp_path / "twin")
    done = run_cli("compare-runs", run, twin, mixed_photos, "--json", "--out", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["only_a"], said["only_b"], said["mcnemar_p"]) == (0, 0, 1.0)
    assert "<h1>run and twin</h1>" in (tmp_path / "page.html").read_text()
    assert_one_error(
        run_cli("compare-runs", run, twin, "--out", "page.html", cwd=tmp_path), "page.html: already exists"
    )
    assert_one_error(run_cli("report", tmp_path, cwd=tmp_path), "not a run folder")
