"""The doctor on this machine, and on machines made ill: packages that are broken, old or tampered with."""

import json

import pytest
from cli_process import run_cli

pytestmark = pytest.mark.slow


def distribution(folder, name, version):
    """A folder that, put first on the path, makes a package look installed in another version."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def findings(done):
    return {(item["state"], item["text"]): item["remedy"] for item in json.loads(done.stdout)["findings"]}


def test_this_machine_is_fit(tmp_path):
    done = run_cli("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["versions"]["torch"]
    assert report["machine"]["cores"].split()[0].isdigit()
    assert ("ok", "timm can be imported") in findings(done)


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
    done = run_cli("doctor", "--json", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "999"})
    assert done.returncode == 1
    found = findings(done)
    texts = {text: (state, remedy) for (state, text), remedy in found.items()}

    def of(start):
        return next(value for text, value in texts.items() if text.startswith(start))

    assert of("timm 0.9.16 is not") == ("broken", "pip install -U 'timm>=1.0.31'")
    assert of("numpy 1.26.4 is not")[0] == "broken"
    assert of("lightning 2.6.3 is a release that was tampered with")[0] == "broken"
    assert of("openvino and nncf report")[0] == "ok"
    assert of("OMP_NUM_THREADS=999")[0] == "advice"


def test_it_works_where_torch_is_missing(tmp_path):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text('raise ImportError("libcudart.so.13: cannot open shared object file")')
    done = run_cli("doctor", "--json", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    broken = [text for state, text in findings(done) if state == "broken"]
    assert len(broken) == 1
    assert "libcudart.so.13" in broken[0]
