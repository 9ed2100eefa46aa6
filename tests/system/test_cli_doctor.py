"""The doctor on this machine, and on machines made ill: packages that are broken, old or tampered with."""

import json
import os
from pathlib import Path

import pytest
from cli_process import run_cli

import cmtvision

SOURCE = str(Path(cmtvision.__file__).parents[1])
pytestmark = pytest.mark.slow


def distribution(folder, name, version, *fields):
    """A folder that, put first on the path, makes a package look installed in another version."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *fields])
    )


def findings(done):
    return {(item["state"], item["text"]): item["remedy"] for item in json.loads(done.stdout)["findings"]}


def test_this_machine_is_fit(tmp_path):
    done = run_cli("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["versions"]["torch"]
    assert report["machine"]["cores"].split()[0].isdigit()
    assert report["machine"]["kernels"].startswith("torch ")
    assert ("ok", "timm can be imported") in findings(done)
    assert {"transformers", "optuna", "wandb", "onnx"} <= set(report["versions"])
    assert "pytest" not in report["versions"]  # what developers need is no concern of users


def test_a_torchvision_of_another_build_is_explained(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    done = run_cli("doctor", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "do not belong together" in done.stdout
    assert "pip install --force-reinstall torch torchvision" in done.stdout
    assert "Traceback" not in done.stderr


def test_old_and_tampered_packages_and_threads_are_named_with_a_remedy(tmp_path):
    distribution(tmp_path, "timm", "0.9.16")
    distribution(tmp_path, "numpy", "1.26.4")
    distribution(tmp_path, "lightning", "2.6.3")
    distribution(tmp_path, "nncf", "3.4.0")
    distribution(tmp_path, "openvino", "2026.4.1")
    poorer = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}  # computes as older processors do
    env = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "999", "CMTVISION_NATIVE": "off", **poorer}
    done = run_cli("doctor", "--json", cwd=tmp_path, env=env)
    assert done.returncode == 1
    found = findings(done)
    texts = {text: (state, remedy) for (state, text), remedy in found.items()}

    def of(start):
        return next(value for text, value in texts.items() if text.startswith(start))

    assert of("timm 0.9.16 is not") == ("broken", "pip install -U 'timm>=1.0.31'")
    assert of("numpy 1.26.4 is not")[0] == "broken"
    assert of("lightning 2.6.3 is a release that was tampered with")[0] == "broken"
    assert of("openvino and nncf report")[0] == "ok"
    assert of("no native loops (CMTVISION_NATIVE is off)")[0] == "ok"
    assert of("OMP_NUM_THREADS=999")[0] == "advice"
    assert of("ONEDNN_MAX_CPU_ISA=SSE41") == ("advice", "unset ONEDNN_MAX_CPU_ISA")
    kernels = "torch DEFAULT, oneDNN fp32, ATEN_CPU_CAPABILITY=default, ONEDNN_MAX_CPU_ISA=SSE41"
    assert json.loads(done.stdout)["machine"]["kernels"] == kernels


def test_extras_are_those_that_the_installed_package_states(tmp_path):
    """Also in a torch without CUDA: the remedy must not bring CUDA."""
    extras = ["Provides-Extra: music", "Provides-Extra: paint", "Provides-Extra: song", "Provides-Extra: all"]
    needs = ["easel>=2; extra == 'paint'", "ink; extra == 'paint'", "lute; extra == 'music'", "rich; extra == 'song'"]
    needs += [f"{name}; extra == 'all'" for name in ("easel>=2", "ink", "lute", "rich")]  # as hatchling writes it
    distribution(tmp_path, "cmtvision", "9.0", *extras, *(f"Requires-Dist: {one}" for one in needs))
    distribution(tmp_path, "easel", "1.0")
    distribution(tmp_path, "torch", "2.15.0+cpu")
    distribution(tmp_path, "torchvision", "0.1", "Requires-Dist: torch==2.14.0")
    done = run_cli("doctor", "--json", cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), SOURCE])})
    found = findings(done)
    assert [(state, text, remedy) for (state, text), remedy in found.items() if "extra" in text] == [
        ("advice", "extra 'paint' is not complete: easel 1.0 is not >=2, ink is missing; only its own commands need it",
         "pip install 'cmtvision[paint]'"),
        ("ok", "extra 'music' is not complete: lute is missing; only its own commands need it",
         "pip install 'cmtvision[music]'"),
    ]  # fmt: skip
    versions = json.loads(done.stdout)["versions"]
    assert (versions["easel"], versions["lute"]) == ("1.0", None)
    assert "onnx" not in versions
    index = "torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    remedies = [remedy for (state, text), remedy in found.items() if "torchvision 0.1" in text]
    assert remedies == [f"pip install -U {index}", f"pip install --force-reinstall {index}"]


def test_it_works_where_torch_is_missing(tmp_path):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text('raise ImportError("libcudart.so.13: cannot open shared object file")')
    done = run_cli("doctor", "--json", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    broken = [text for state, text in findings(done) if state == "broken"]
    assert len(broken) == 1
    assert "libcudart.so.13" in broken[0]
