"""``cmtvision bench``: speed and memory on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmtvision.cli.arguments import check_free

if TYPE_CHECKING:
    from cmtvision.bench.target import Target

RECORD_FILE = "bench.json"


def bench(  # typer reads options from the signature
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="Names, ours or timm's (random weights), with a size or not (cmt_s@256); run folders; exports, folder "
            "or file.",
        ),
    ],
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="Images of a forward pass.")] = "1,8",
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="N,N", help="Threads on a CPU; default: all usable cores.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="NAME,NAME",
            help="For names and runs: eager, channels-last, fused, compiled, cuda-graph, torch, onnx, openvino; "
            "default: eager, fused and the exports that are installed.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="NAME,NAME", help="For names and runs: fp32, bf16, fp16, amp [fp32]."),
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(
            "--img-size", min=1, help="Side of the image in pixels, of names and runs; default: each one's own."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each has its turn.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, help="Of a turn.")] = 2.0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for bench.json, bench.csv, plot.svg and plot.png.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Measure latency, throughput and memory in every runtime, against plain PyTorch and the machine's limits.

    Exports are written to a temporary folder and verified on real images before they are timed. In interleaved rounds
    every form has a turn while the others sleep.
    """
    from cmtvision.cli import output
    from cmtvision.cli.bench_table import show_speed
    from cmtvision.cli.provenance import provenance
    from cmtvision.errors import ConfigError

    batches = numbers("--batch", batch)
    counts = None if threads is None else numbers("--threads", threads)
    if overwrite and out is None:
        raise ConfigError("--overwrite: nothing is written without --out; add it, or leave --overwrite out")
    if out is not None:
        check_free(out, overwrite)

    from cmtvision.artefact.predictor import pick_device
    from cmtvision.bench.runtimes import in_runtimes
    from cmtvision.bench.target import find_targets
    from cmtvision.machine import usable_cores

    place = pick_device(device)
    if place != "cpu" and counts is not None:
        raise ConfigError(f"--threads: for a CPU, the device is {place}; add --device cpu, or leave --threads out")
    ways = in_runtimes(
        find_targets(targets),
        runtimes=_words(runtime),
        precisions=_words(precision),
        threads=counts or [usable_cores()],
        img_size=img_size,
        device=place,
    )
    if out is not None:
        _check_writable(out)  # now, not when all is measured
    said = f"batch {', '.join(map(str, batches))}, {rounds} rounds of {seconds:g} s"
    output.note(f"bench    {len(ways)} forms on {place}, {said}")
    origin = provenance()
    if place == "cpu":
        output.note(f"kernels  {origin['hardware']['kernels']}")
    record = {
        **origin,
        "device": place,
        "rounds": rounds,
        "seconds": seconds,
        **_measured(ways, batches, rounds, seconds, place),
    }
    if json:
        output.result_json(record)
    else:
        show_speed(record)
    if out is not None:
        written = _write(record, out)  # after the table: a disk that is full takes no figure with it
        if not json:
            output.result(f"record: {out / RECORD_FILE}, {', '.join(path.name for path in written)}")
    if all(row["failure"] is not None for row in record["cells"]):
        output.note("nothing could be measured")
        raise typer.Exit(1)


def numbers(option: str, text: str) -> list[int]:
    """'1,8' as numbers of at least 1, each once. Raises ConfigError."""
    from cmtvision.errors import ConfigError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"{option}: got {text!r}, expected whole numbers of at least 1, such as 1,8")
    return sorted({int(word) for word in words})


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",")]


def _check_writable(folder: Path) -> None:
    """Make a folder and see that files can be written there. Raises ConfigError."""
    from tempfile import TemporaryFile

    from cmtvision.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error


def _measured(targets: "Sequence[Target]", batches: Sequence[int], rounds: int, seconds: float, place: str) -> Any:
    """Export what has to be, and measure."""
    from tempfile import TemporaryDirectory

    from cmtvision.bench.exports import make_exports
    from cmtvision.bench.limits import limit_kinds
    from cmtvision.bench.measure import measure
    from cmtvision.bench.record import speed_record
    from cmtvision.bench.runtimes import EXPORTS
    from cmtvision.cli import output

    with TemporaryDirectory(prefix="cmtvision-bench-") as temporary:
        failures: dict[Target, str] = {}
        if any(target.runtime in EXPORTS and target.file is None for target in targets):
            with output.progress("exporting and verifying") as progress:
                targets, failures = make_exports(targets, Path(temporary), progress)
        found = measure(
            targets,
            batches=batches,
            rounds=rounds,
            seconds=seconds,
            device=place,
            limits=limit_kinds(targets),
            failures=failures,
            phase=output.progress,
        )
    return speed_record(found)


def _write(record: dict[str, Any], folder: Path) -> list[Path]:
    """The record, its table and its figures; returns the last two."""
    from json import dumps

    from cmtvision.files import write_text
    from cmtvision.report.roofline import write_roofline, write_speed_csv

    write_text(folder / RECORD_FILE, dumps(record, indent=1) + "\n")
    return [write_speed_csv(record, folder), *write_roofline(record, folder)]
