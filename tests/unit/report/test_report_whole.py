"""The whole report of a run, with real images; and what it says where something is missing."""

import json
import re
import shutil

import pytest
from bs4 import BeautifulSoup
from huggingface_hub import ModelCard
from report_runs import CLASSES, write_images, write_run

from cmtvision.engine import evaluate
from cmtvision.errors import ConfigError, DataError
from cmtvision.report.whole_page import Options, write_whole_report

NO_WORKERS = Options(workers=0)


def words(element):
    return re.sub(r"\s+", " ", element.get_text()).strip()


def soup_of(written):
    return BeautifulSoup(written.page.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return write_run(root / "run", write_images(root / "data"))


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    table = run.parent / "table.csv"
    table.write_text(
        "path,camera\n" + "".join(f"val/{name}/{n}.png,{'x' if n < 4 else 'y'}\n" for name in CLASSES for n in range(6))
    )
    options = Options(slices=table, corruptions=True, num_images=3, workers=0)
    return write_whole_report(run, None, options)


def test_the_page_has_every_section_and_the_figures_of_an_evaluation(written, run):
    soup, found = soup_of(written), evaluate(run, run.parent / "data", workers=0)
    assert written.page == run / "report.html"
    assert soup.find(id="top1").text == f"{100 * found.top1:.2f}%"
    assert soup.find(id="top5").text == f"{100 * found.top5:.2f}%"
    assert written.figures["top1"]["low"] < found.top1 < written.figures["top1"]["high"]
    links = [link["href"][1:] for link in soup.nav("a")]
    assert links == [
        "curves", "h-confusion", "h-classes", "h-examples", "h-calibration", "h-slices", "h-robustness", "h-card",
        "h-use", "h-provenance",
    ]  # fmt: skip
    assert all(soup.find(id=anchor) for anchor in links)
    assert len(soup.find(id="harm").tbody("tr")) == 15
    headings = [heading.text for heading in soup.find(id="h-slices").parent("h3")]
    assert headings == ["Shorter side", "Longer side by shorter", "Brightness", "camera"]
    assert [row.th.text for row in soup("table", class_="slices")[-1].tbody("tr")] == ["x", "y"]
    bins = soup.find(id="bins").tbody("tr")
    assert sum(int(row("td")[0].text) for row in bins) == found.num_images == 36


def test_worst_mistakes_come_first_and_doubtful_ones_lead_by_little(written, run):
    ones = {
        photo.path.parent.name + "/" + photo.path.name: photo
        for photo in evaluate(run, run.parent / "data").predictions
    }
    wrong = sorted(
        (photo for photo in ones.values() if photo.label != photo.predicted), key=lambda one: one.true_probability
    )
    cards = soup_of(written).find(id="h-examples").parent("ul")[0]("li")
    assert len(cards) == 12
    shown = [float(re.findall(r"([\d.]+)%", card.get_text())[1]) for card in cards]
    assert shown == pytest.approx([100 * one.true_probability for one in wrong[:12]], abs=0.06)
    doubtful = min(one.margin for one in ones.values() if one not in wrong[:12])
    first = soup_of(written).find(id="h-examples").parent("ul")[1].li
    assert any(one.margin == doubtful and f"{100 * one.probability:.1f}%" in first.get_text() for one in ones.values())


def test_names_stay_names_and_nothing_is_fetched(written):
    text = written.page.read_text(encoding="utf-8")
    soup = BeautifulSoup(text, "html.parser")
    assert not soup("script")
    assert not soup.find("img", src="x")
    assert all(img["src"].startswith("data:image/") and img["alt"] for img in soup("img"))
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_the_model_card_is_one_that_hugging_face_reads(written, run):
    card = ModelCard(written.readme.read_text(encoding="utf-8"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("cmtvision", "image-classification")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(written.figures["top1"]["value"], abs=1e-6)
    assert "cmt_nano" in card.data.tags
    for part in ("## Model", "## Data", "## Recipe", "## Figures", "## Cost", "## Versions", "## Limits"):
        assert part in card.text
    assert "<img" not in card.text
    assert "36 held-out images" in card.text


def test_files_that_are_there_are_not_replaced_unasked(written, run, tmp_path):
    (run / "README.md").write_text("mine")
    again = write_whole_report(run, options=NO_WORKERS)
    assert again.readme is None
    assert (run / "README.md").read_text() == "mine"
    assert write_whole_report(run, options=NO_WORKERS, overwrite=True).readme == run / "README.md"
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(ConfigError, match=r"page.html: already exists"):
        write_whole_report(run, options=NO_WORKERS, out=page)


def test_moved_images_are_looked_for_where_they_are_given(run, tmp_path):
    copied, moved = shutil.copytree(run, tmp_path / "run"), shutil.copytree(run.parent / "data", tmp_path / "elsewhere")
    facts = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(
        json.dumps({**facts, "data": str(tmp_path / "gone"), "root": str(tmp_path / "gone")})
    )
    alone = write_whole_report(copied, options=NO_WORKERS)
    assert len(alone.notes) == 1
    assert re.match(r"Made from the run folder alone, without its images: .*gone", alone.notes[0])
    soup = soup_of(alone)
    assert soup.find(id="confusion")
    assert soup.find(id="h-examples") is None
    assert "without its images" in words(soup.find(id="notes"))
    (moved / "val" / "red" / "0.png").unlink()
    (moved / "val" / "blue & co" / "0.png").write_bytes(b"damaged")
    shutil.rmtree(moved / "val" / "green")
    shutil.copy(moved / "val" / "red" / "1.png", moved / "val" / "red" / "new.png")
    found = write_whole_report(copied, moved, NO_WORKERS)
    said = "\n".join(found.notes)
    assert "8 of the 36 photos that the run held out are not in this data." in said
    assert re.search(r"files were left out, .*not an image", said)
    assert "1 class has no images here, and so no recall: green." in said
    assert soup_of(found).find(id="h-examples")
    with pytest.raises(DataError, match="nowhere"):
        write_whole_report(copied, tmp_path / "nowhere", NO_WORKERS)


def test_a_run_without_held_out_images_says_so(tmp_path):
    data = write_images(tmp_path / "data", CLASSES[:2], train=4, val=0)
    shutil.rmtree(data / "val")
    written = write_whole_report(write_run(tmp_path / "run", data), options=NO_WORKERS)
    assert re.match(r"Made from the run folder alone: .*trained on all 8 of these", written.notes[0])
    assert soup_of(written).find(id="top1").text == "not measured"
    assert ModelCard(written.readme.read_text()).data.eval_results is None


def test_one_class_and_one_image(tmp_path):
    data = write_images(tmp_path / "data", CLASSES[:2], train=2, val=1)
    shutil.rmtree(data / "val" / CLASSES[1])
    run = write_run(tmp_path / "run", data)
    written = write_whole_report(run, options=NO_WORKERS)
    said = " ".join(written.notes)
    assert "Only 1 image to measure on" in said
    assert f"1 class has no images here, and so no recall: {CLASSES[1]}." in said
    assert written.figures["top1"]["method"] == "Wilson"


def test_several_labels_leave_out_what_needs_one(tmp_path):
    data = write_images(tmp_path / "data", ["a", "b"], train=2, val=2)
    table = tmp_path / "data.csv"
    rows = [
        f"data/{part}/{name}/{n}.png,{label},{part}"
        for part in ("train", "val")
        for name, label in (("a", "a|b"), ("b", "b"))
        for n in range(2)
    ]
    table.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    assert data.is_dir()
    run = write_run(tmp_path / "run", table, task="multi-label")
    written = write_whole_report(run, options=Options(corruptions=True, num_images=2, workers=0))
    soup = soup_of(written)
    assert "confusion and calibration are defined for one label per image" in " ".join(written.notes)
    assert soup.find(id="h-calibration") is None
    assert soup.find(id="map")
    assert len(soup.find(id="harm").tbody("tr")) == 15
    right = written.figures["top1"]["value"]
    assert f"{100 * right:.2f}%" in soup.get_text()
    assert ModelCard(written.readme.read_text()).data.tags[-1] == "multi-label"
