"""The checks of ``cmtvision doctor``: facts about the machine, and known problems explained.

Nothing here imports torch, torchvision or timm: a child process imports them, so the doctor works where
they do not.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from cmtvision.cli.machine import describe_machine, isa_settings, shared_memory
from cmtvision.machine import usable_processors

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_SHOWN = (
    "cmtvision", "torch", "torchvision", "timm", "pytorch-lightning", "lightning", "numpy", "pillow", "pydantic",
    "typer", "rich", "safetensors",
)  # fmt: skip
_SUMS = ("all", "dev")  # extras that hold the others
_CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"
_COMPROMISED = {"2.6.2", "2.6.3"}
_PROBE = """
import json
found = {}
for name in ("torch", "torchvision", "timm", "pytorch_lightning"):
    try:
        __import__(name)
        found[name] = ""
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
try:
    import torch
    found["cuda_build"] = torch.version.cuda or torch.version.hip
    found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["mps"] = torch.backends.mps.is_available()
    found["mkldnn"] = torch.backends.mkldnn.is_available()
    found["threads"] = torch.get_num_threads()
    found["capability"] = torch.backends.cpu.get_cpu_capability()
    supported = lambda kind: getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported")()
    found["onednn_types"] = [kind for kind in ("bf16", "fp16") if supported(kind)]
    from cmtvision.models.accelerate.native.library import missing
    found["no_native_loops"] = missing()
except Exception:
    pass
print("\\n@" + json.dumps(found))
"""
_PROBE_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """One check: state 'ok', 'advice' or 'broken', what was found, and what to do about it."""

    state: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """Facts by name, versions by distribution (None where absent), and findings, the worst first."""

    machine: dict[str, str]
    versions: dict[str, str | None]
    findings: list[Finding]


def examine() -> Report:
    """Run all checks; takes a few seconds, since torch and its companions are imported in a child process."""
    extras = _optional()
    optional = [requirement.name for extra in sorted(extras) for requirement in extras[extra]]
    versions = {name: _version(name) for name in (*_SHOWN, *optional)}
    probe = _probe()
    findings = [
        *_imports(probe),
        *_requirements(),
        *_pairing(versions),
        *_compromised(versions),
        *_threads(probe),
        *_instructions(),
        *_native_loops(probe),
        *_memory(),
        *_telemetry(),
        *_extras(extras),
    ]
    rank = {"broken": 0, "advice": 1, "ok": 2}
    findings.sort(key=lambda finding: rank[finding.state])
    if not any(finding.state != "ok" for finding in findings):
        findings.append(Finding("ok", "nothing to complain about"))
    return Report(describe_machine(probe), versions, findings)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _optional() -> dict[str, list["Requirement"]]:
    """What each extra brings, as the installed package states it; those that combine others are left out."""
    from packaging.requirements import Requirement

    try:
        names = metadata.metadata("cmtvision").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    stated = [Requirement(line) for line in metadata.requires("cmtvision") or []]
    marked = [one for one in stated if one.marker is not None and not one.marker.evaluate({"extra": ""})]
    return {
        name: [one for one in marked if one.marker is not None and one.marker.evaluate({"extra": name})]
        for name in names
        if name not in _SUMS
    }


def _probe() -> dict[str, Any]:
    """What torch and its companions report when imported in a process of their own."""
    try:
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROBE],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"torch": f"its import takes longer than {_PROBE_SECONDS} s"}
    line = child.stdout.rpartition("\n@")[2]
    try:
        return dict(json.loads(line))
    except ValueError:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return {"torch": f"its import ends the process: {last[:200]}"}


def _imports(probe: dict[str, Any]) -> Iterator[Finding]:
    for name in ("torch", "torchvision", "timm", "pytorch_lightning"):
        fault = probe.get(name, "not tried")
        if name != "torch" and probe.get("torch"):
            continue  # it needs torch: one finding says it all
        if not fault:
            yield Finding("ok", f"{name} can be imported")
        elif "torchvision::nms" in fault:
            text = f"{name} cannot be imported ({fault}): torch and torchvision are builds that do not belong together"
            if not probe.get("cuda_build"):
                text += "; this torch is the CPU-only build, PyPI's torchvision needs the default one"
            yield Finding(
                "broken",
                text,
                f"install both from one place: pip install --force-reinstall torch torchvision, or with {_CPU_INDEX}",
            )
        elif fault.startswith("ModuleNotFoundError"):
            yield Finding("broken", f"{name}: {fault}", f"pip install {name.replace('_', '-')}")
        else:
            yield Finding("broken", f"{name} cannot be imported: {fault}", f"pip install --force-reinstall {name}")


def _requirements() -> Iterator[Finding]:
    """Every dependency that cmtvision states, against what is installed."""
    from packaging.requirements import Requirement

    try:
        stated = metadata.requires("cmtvision") or []
    except metadata.PackageNotFoundError:
        yield Finding("advice", "cmtvision is run from its source without being installed", "pip install -e .")
        return
    for line in stated:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None:
            yield Finding("broken", f"{requirement.name} is not installed", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement.name} {installed} is not {requirement.specifier}, which cmtvision needs"
            if requirement.name == "numpy":
                text += "; NumPy 1 and 2 are not interchangeable for compiled packages"
            yield Finding("broken", text, f"pip install -U '{requirement}'")


def _pairing(versions: dict[str, str | None]) -> Iterator[Finding]:
    """Check torch against the version that torchvision was built for."""
    from packaging.requirements import Requirement

    torch, torchvision = versions["torch"], versions["torchvision"]
    if not torch or not torchvision:
        return
    both = f"pip install -U torch torchvision{f' {_CPU_INDEX}' if torch.endswith('+cpu') else ''}"
    for line in metadata.requires("torchvision") or []:
        requirement = Requirement(line)
        if requirement.name == "torch" and not requirement.specifier.contains(torch, prereleases=True):
            yield Finding(
                "broken",
                f"torchvision {torchvision} was built for torch {requirement.specifier}, installed is {torch}",
                both,
            )
    local = {re.sub(r"^.*\+", "", version) if "+" in version else "" for version in (torch, torchvision)}
    if len(local) > 1:
        yield Finding(
            "advice",
            f"torch {torch} and torchvision {torchvision} come from different builds",
            both.replace("-U", "--force-reinstall"),
        )


def _compromised(versions: dict[str, str | None]) -> Iterator[Finding]:
    for name in ("pytorch-lightning", "lightning"):
        if versions[name] in _COMPROMISED:
            yield Finding(
                "broken",
                f"{name} {versions[name]} is a release that was tampered with; it may have read this machine's secrets",
                f"pip install -U '{name}>=2.6.6', then change passwords and tokens that this account can read",
            )


def _threads(probe: dict[str, Any]) -> Iterator[Finding]:
    cores = usable_processors()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        wanted = os.environ.get(name, "")
        if wanted.isdigit() and int(wanted) > cores:
            yield Finding(
                "advice",
                f"{name}={wanted}, but {cores} cores are usable: threads will wait for each other",
                f"export {name}={cores}, or unset it",
            )
        elif wanted == "1" and cores > 1:
            yield Finding("advice", f"{name}=1: one of {cores} cores is used", f"unset {name}")
    threads = probe.get("threads")
    if isinstance(threads, int) and threads > cores and not os.environ.get("OMP_NUM_THREADS"):
        yield Finding(
            "advice", f"torch starts {threads} threads on {cores} usable cores", f"export OMP_NUM_THREADS={cores}"
        )


def _instructions() -> Iterator[Finding]:
    for setting in isa_settings():
        name = setting.partition("=")[0]
        text = f"{setting}: other instructions than this processor's best, so other speed and other roundings"
        yield Finding("advice", text, f"unset {name}")


def _native_loops(probe: dict[str, Any]) -> Iterator[Finding]:
    why = probe.get("no_native_loops")
    if why:
        text = f"no native loops ({why}): a CMT computes and trains a tenth to a fifth slower on this CPU"
        yield Finding("ok", text, "install g++" if "no compiler" in why else "")


def _memory() -> Iterator[Finding]:
    free = shared_memory()
    if free is not None and free < 1_000_000_000:
        yield Finding(
            "advice",
            f"/dev/shm has {free / 1e6:,.0f} MB free: loader processes hand over batches through it and may die with "
            "'bus error'",
            "docker run --shm-size=8g, or train with --set data.workers=0",
        )


def _telemetry() -> Iterator[Finding]:
    present = [name for name in ("openvino", "nncf") if _version(name)]
    if present:
        yield Finding(
            "ok",
            f"{' and '.join(present)} report usage to their makers when imported, but for cmtvision, which forbids it",
            "opt_in_out --opt_out (a command of openvino-telemetry), and export NNCF_CI=1",
        )


def _extras(extras: dict[str, list["Requirement"]]) -> Iterator[Finding]:
    for extra, brought in sorted(extras.items()):
        lacking, old = [], False
        for requirement in brought:
            installed = _version(requirement.name)
            if installed is None:
                lacking.append(f"{requirement.name} is missing")
            elif not requirement.specifier.contains(installed, prereleases=True):
                lacking.append(f"{requirement.name} {installed} is not {requirement.specifier}")
                old = True
        if lacking:
            yield Finding(
                "advice" if old else "ok",
                f"extra '{extra}' is not complete: {', '.join(lacking)}; only its own commands need it",
                f"pip install 'cmtvision[{extra}]'",
            )
