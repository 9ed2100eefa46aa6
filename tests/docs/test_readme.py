"""The README keeps its word: commands run, snippets of Python run, tables are fresh, links lead somewhere.

Commands run as they stand, in the order of the page, in one folder; what is added only makes them small (fewer photos,
one epoch, a few steps).
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from warm_process import WarmProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ["--trials", "2", "--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0", "--set", "train.max_steps=2"]
FEW += ["--set", "train.batch_size=4"]
BRIEF = ["--set", "train.batch_size=4"]
ONCE = ["--only", "ladder", "--seeds", "1", "--set", "schedule.epochs=1", "--set", "train.batch_size=4", "--set",
        "train.max_steps=2"]  # fmt: skip
SMALLER = ["--epochs", "1", "--batch-size", "4", "--set", "train.max_steps=2"]

WARM = WarmProcess()
ROUGHLY = ["--rounds", "1", "--seconds", "0.02"]
LENIENT = ["--calibration", "32", "--max-drop", "100"]
ADDED = {"train": SMALLER, "tune": FEW, "lr-find": BRIEF, "ablate": ONCE, "quantize": LENIENT,
         "compare": ["--rounds", "1", "--img-size", "64"],
         "bench": [*ROUGHLY, "--runtime", "eager,fused,onnx"]}  # fmt: skip


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def run(words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


def run_command(words, folder):
    done = WARM.run(words, folder, b"", None, 500)
    assert done.returncode == 0, f"cmtvision {shlex.join(words)}\n{done.stdout.decode()}\n{done.stderr.decode()}"


def shrink(photos):
    """Keep the first photos of each class, and those that the page names."""
    for folder in [*photos.glob("train/*"), *photos.glob("val/*")]:
        for file in sorted(folder.glob("*.png"))[4:]:
            if f"{folder.parent.name}/{folder.name}/{file.name}" not in README:
                file.unlink()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what a reader of the page has: a released-layout file of CMT-S."""
    import timm

    import cmtvision  # noqa: F401
    from cmtvision.weights import to_official

    folder = tmp_path_factory.mktemp("readme")
    torch.save({"model": to_official(timm.create_model("cmt_s").state_dict())}, folder / "cmt_small.pth")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_page_runs(world):
    seen = commands()
    assert len(seen) >= 12
    for command in seen:
        words = shlex.split(command)
        if words[0] == "make":
            run(["make", "-n", *words[1:]], ROOT)
            continue
        if words[0] == "pip":
            continue  # tests/docs/test_install.py runs them
        assert words[0] == "cmtvision", command
        named = words[2] if words[1] in ("detect", "segment") else words[1]
        extra = [] if "--resume" in words else ADDED.get(named, [])
        run_command(words[1:] + extra, world)
        if words[1] == "sample-data":
            shrink(world / words[2])
    for snippet in blocks("python"):
        run([sys.executable, "-c", f"import timm, cmtvision\n{snippet}"], world)


@pytest.mark.slow
def test_the_demo_is_made_of_commands_that_run(tmp_path):
    planned = run(["make", "-n", "demo", f"DEMO={tmp_path / 'demo'}"], ROOT).stdout.splitlines()
    steps = [line for line in planned if line.startswith(".venv/bin/cmtvision ")]
    assert [step.split()[1] for step in steps] == [
        "sample-data",
        "check-data",
        "train",
        "predict",
        "report",
        "explain",
    ]
    for step in steps:
        words = step.split()[1:]
        extra = ["--epochs", "1", "--batch-size", "4", "--set", "train.max_steps=2"] if words[0] == "train" else []
        files = [str(file) for word in words if "*" in word for file in sorted(Path("/").glob(word.removeprefix("/")))]
        words = [word for word in words if "*" not in word]
        run_command([*words, *files, *extra], tmp_path)
        if words[0] == "sample-data":
            for folder in (tmp_path / "demo" / "photos").glob("*/*"):
                for file in sorted(folder.glob("*.png"))[30:]:
                    if not file.name.endswith(("81.png", "00053.png")):
                        file.unlink()
    for page in ("data.html", "run/report.html", "ideas.html"):
        assert (tmp_path / "demo" / page).is_file()


def test_the_tables_are_fresh():
    run([sys.executable, "benchmarks/tables.py", "--check"], ROOT)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
)
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
    for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), f"{page}: {name}"
