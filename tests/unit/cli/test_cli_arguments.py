"""The command line as it is read: options that stand alone or not, and files called like options."""

import pytest

from cmtvision.cli import main
from cmtvision.cli.arguments import spelled_out
from cmtvision.cli.faults import INTERRUPTED, exit_code
from cmtvision.cli.launch import without_options


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("train d --out r --resume", "train d --out r --resume=yes"),
        ("train d --resume --out r", "train d --resume=yes --out r"),
        ("train d --resume auto --out r", "train d --resume auto --out r"),
        ("train --resume -- --resume", "train --resume=yes -- --resume"),
        ("train --resume -- auto", "train --resume=yes -- auto"),
        ("predict r -- --resume auto --debug", "predict r -- --resume auto --debug"),
    ],
)
def test_resume_has_its_value_and_files_behind_two_dashes_stay_files(line, wanted):
    assert spelled_out(line.split()) == wanted.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("train d --devices 2 --json", "train d --json"),
        ("train --devices=2 d", "train d"),
        ("train --devices 2 -- --devices", "train -- --devices"),
        ("train --devices 2 -- --devices=2 x", "train -- --devices=2 x"),
    ],
)
def test_options_with_values_are_taken_out_of_a_command_line(line, wanted):
    assert without_options(line.split(), ["--devices"]) == wanted.split()


@pytest.mark.parametrize("name", ["--resume", "--debug", "--devices=2"])
def test_data_may_be_called_like_an_option(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--recipe", "demo", "--", name]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(f"error: {name}: no such folder or file")
    assert "Traceback" not in said


def test_ctrl_c_in_a_command_is_said(monkeypatch, capsys):
    """typer ends a command with 130 on its own, without a word."""

    def interrupted():
        raise KeyboardInterrupt("stopped while it looked around")

    monkeypatch.setattr("cmtvision.cli.checkup.examine", interrupted)
    assert main(["doctor"]) == INTERRUPTED
    assert capsys.readouterr().err == "stopped while it looked around\n"


def test_ctrl_c_is_one_line(capsys):
    assert exit_code(KeyboardInterrupt(), []) == INTERRUPTED
    assert exit_code(KeyboardInterrupt("stopped while it slept"), []) == INTERRUPTED
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("stopped by Ctrl-C")
    assert second == "stopped while it slept"
