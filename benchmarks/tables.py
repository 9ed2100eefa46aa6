"""Write the tables of the README and the docs from the records: python benchmarks/tables.py [--check].

A table stands between <!-- table:NAME --> and <!-- /table --> and is replaced whole; --check only says whether the
pages are fresh (exit code 1 if not).
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from cmtvision.bench.limits import in_words
from cmtvision.models.peers.published import list_published
from cmtvision.report.ablation import in_points
from cmtvision.study.intervals import paired_difference

REFUSED = "; its exports differ"  # of a network whose exports the verification refused
ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"


def record(name: str) -> dict[str, Any]:
    return dict(json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")))


def measured(*names: str) -> str:
    """Where and when records were made, a sentence for each machine and day."""
    places: dict[str, list[str]] = {}
    for name in names:
        found = record(name)
        hardware, versions = found["hardware"], found["versions"]
        kernels = f" ({hardware['kernels']})" if "kernels" in hardware else ""
        gpu = "" if hardware["GPU"] == "none" else f", {hardware['GPU']}"
        place = (
            f"{hardware['processor']}{kernels}, {hardware['cores']} cores{gpu}; torch {versions['torch']}; "
            f"{found['date']}"
        )
        places.setdefault(place, []).append(f"`{name}`")
    return "\n".join(f"Measured on {place} ({', '.join(made)})." for place, made in places.items())


def with_place(lines: list[str], *names: str) -> str:
    """A table, and below it where its records were made."""
    return "\n".join([*lines, "", measured(*names)])


def at_equal_accuracy() -> str:
    """Each CMT, and the fastest networks that are published as at least as accurate."""
    rows = [row for row in record("published-cpu")["rows"] if row["failure"] is None and not row["refused"]]
    lines = [
        "| | Published top-1 | One image | Fastest of the paper's others, as accurate | Fastest of all, as accurate |",
        "|---|---|---|---|---|",
    ]
    for name in ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b"):
        own = next(row for row in rows if row["model"] == name)
        as_good = [row for row in rows if row["published"]["percent"] >= own["published"]["percent"]]
        others = [row for row in as_good if row["family"] != "CMT"]
        best = [min(among, key=milliseconds, default=None) for among in (of_paper(others), others)]
        cells = ["none measured" if row is None else said(row) for row in best]
        lines.append(
            f"| `{name}` | {own['published']['percent']:.1f}% | {milliseconds(own):.1f} ms | {' | '.join(cells)} |"
        )
    return with_place(lines, "published-cpu")


def published_latency() -> str:
    """Every network of the first figure."""
    lines = [
        "| Network | `timm` name | Input | Published top-1 | One image, ms (least-most) | Runtime |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(record("published-cpu")["rows"], key=milliseconds):
        least, most = (1e3 * row["latency_seconds"][key] for key in ("min", "max"))
        lines.append(
            f"| {system_of(row)} | `{row['model'].partition('@')[0]}` | {row['input_size'][-1]} | "
            f"{row['published']['percent']:.1f}% | {milliseconds(row):.1f} ({least:.1f}-{most:.1f}) | "
            f"{RUNTIMES[row['runtime']]}{REFUSED if row['refused'] else ''} |"
        )
    return with_place(lines, "published-cpu")


def of_paper(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["of_paper"]]


def said(row: dict[str, Any]) -> str:
    return f"{system_of(row)} {row['published']['percent']:.1f}%, {milliseconds(row):.1f} ms"


def milliseconds(row: dict[str, Any]) -> float:
    return 1e3 * float(row["latency_seconds"]["median"])


def system_of(row: dict[str, Any]) -> str:
    """The name in the literature of a row's network; a star where it learned from a larger one."""
    figure = row["published"]
    found = next(
        one.system
        for one in list_published()
        if (one.model, one.top1, one.source) == (row["architecture"], figure["percent"], figure["source"])
    )
    return found.replace(" distilled", "*")


def models() -> str:
    """The networks: size, cost, published accuracy, and what this machine measured."""
    speed = record("speed-cpu")
    threads = speed["threads"]
    lines = [
        f"| Model | Input | Parameters | GMACs | ImageNet top-1 (paper) | Images/s, batch 1 / 8, {threads} cores |",
        "|---|---|---|---|---|---|",
    ]
    rows = {row["name"]: row for row in record("models")["models"]}
    for name in ("cmt_nano", "cmt_ti", "cmt_xs", "cmt_s", "cmt_b", "cmt_ti_kecam"):
        row = rows[name]
        top1 = f"{row['paper_top1']:.1f}%" if row["paper_top1"] and not name.endswith("kecam") else "-"
        side = row["input_size"][-1]
        rates = "-"
        if name in speed["inference"]:
            measured = speed["inference"][name]
            ways = [way for way in ("nchw", "channels_last", "fused") if f"{way} batch 8" in measured]
            best = [max(measured[f"{way} batch {batch}"]["median"] for way in ways) for batch in (1, 8)]
            rates = " / ".join(f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" for rate in best)
        lines.append(f"| `{name}` | {side} | {row['parameters']:,} | {row['gmacs']:.3f} | {top1} | {rates} |")
    return "\n".join(lines)


def runs() -> str:
    """Trained here: what a recipe gave."""
    lines = ["| Recipe | Trained on | Tested on | Correct | Top-1 | Training time |", "|---|---|---|---|---|---|"]
    for name in ("run-demo", "run-fashion_mnist"):
        run = record(name)
        result = run["evaluation"]
        minutes = run["train_seconds"] / 60
        lines.append(
            f"| `{run['recipe']['name']}` (`{run['architecture']}`) | {run['train_images']:,} photos | "
            f"{result['num_images']:,} photos | {result['top1_correct']:,} | {result['top1']:.2%} | {minutes:.1f} min |"
        )
    return with_place(lines, "run-demo", "run-fashion_mnist")


def transfer() -> str:
    """Three classes learned from 50 photos each, four ways."""
    study = record("transfer-study")
    lines = ["| cmt_nano on three new classes | Test photos recognised, each seed | Mean | SD |", "|---|---|---|---|"]
    for name, method in study["methods"].items():
        counts = ", ".join(f"{count:,}" for count in method["correct"])
        label = f"({name} of the distilled, cmt_ti)" if name == "teacher" else name
        lines.append(f"| {label} | {counts} of {method['of']:,} | {method['mean']:.2%} | {method['sd']:.2%} |")
    return "\n".join([*lines, "", study["verdict"][0].upper() + study["verdict"][1:] + "."])


def throughput() -> str:
    """The training step and the loader beside the plain ones of the same run."""
    found = record("throughput-cpu")
    step, loader = found["training_step"], found["loader"]
    lines = ["| Training | Median | Against the plain one |", "|---|---|---|"]
    for name, row in step["rows"].items():
        what = f"`{step['model']}` step, {step['pixels']} px, batch {step['batch']}: {name}"
        lines.append(f"| {what} | {row['median_seconds']:.3f} s | {row['speedup']:.2f}x |")
    for name, row in loader["rows"].items():
        lines.append(f"| loader, 1 worker: {name} | {row['photos_per_second']:,.0f} photos/s | {row['speedup']:.2f}x |")
    lines.append(f"| share of a step spent waiting for data | {max(found['waiting']['data_wait']):.1%} | |")
    return with_place(lines, "throughput-cpu")


RUNTIMES = {"eager": "PyTorch, as written (NCHW)", "channels-last": "PyTorch, channels-last", "fused": "PyTorch, fused",
            "compiled": "PyTorch, fused and compiled", "torch": "export to torch", "onnx": "ONNX Runtime",
            "openvino": "OpenVINO"}  # fmt: skip


def rate(cell: dict[str, Any]) -> str:
    """Images/s, and how many times plain eager's in the same rounds."""
    images = cell["images_per_second"]["median"]
    times = cell["x_eager"]
    return f"{images:.1f}" + ("" if times is None else f" ({times['median']:.2f}x)")


def inference() -> str:
    """CMT-S in every form: images a second, and the share of the machine's products that it reaches."""
    parts = {"speed-cpu": record("speed-cpu")["speed"], "compiled-cpu": record("compiled-cpu")}
    both = [cell for part in parts.values() for cell in part["cells"]]
    cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for cell in both:
        if cell["target"] == "cmt_s" and cell["failure"] is None:
            cells.setdefault((cell["runtime"], cell["precision"]), {}).setdefault(cell["batch"], cell)
    lines = [
        "| CMT-S, 224 px | | Images/s, batch 1 | Batch 8 | Of the limit, batch 1 / 8 |",
        "|---|---|---|---|---|",
    ]
    for (runtime, precision), by_batch in sorted(cells.items(), key=lambda item: item[0][1] != "fp32"):
        share = " / ".join(f"{by_batch[batch]['fraction_of_limit']:.0%}" for batch in (1, 8))
        lines.append(f"| {RUNTIMES[runtime]} | {precision} | {rate(by_batch[1])} | {rate(by_batch[8])} | {share} |")
    limits = [f"- {limits_of(part)} (`{name}`)" for name, part in parts.items()]
    return "\n".join([*lines, "", measured(*parts), "The limits, 100%, were:", "", *limits])


def limits_of(part: dict[str, Any]) -> str:
    """What 100% is in each precision of a record, and which library or network reached it."""
    (row,) = part["limits"]
    said = [f"{kind} {in_words(kind, row[kind])}" for kind in ("fp32", "bf16") if kind in row]
    old = any("library" not in row[kind] and "network" not in row[kind] for kind in ("fp32", "bf16") if kind in row)
    return "; ".join(said) + ("; no other library was tried, so shares may be too high" if old else "")


def same_cost() -> str:
    """CMT-S beside networks of about its multiply-adds, each in its best form."""
    cells = [cell for cell in record("speed-cpu")["speed"]["cells"] if cell["failure"] is None]
    lines = ["| Network | GMACs | fp32, batch 1 | Batch 8 | bf16, batch 1 | Batch 8 |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(cell["target"] for cell in cells):
        own = [cell for cell in cells if cell["target"] == name]
        best = []
        for precision in ("fp32", "bf16"):
            for batch in (1, 8):
                fits = [cell for cell in own if (cell["precision"], cell["batch"]) == (precision, batch)]
                fastest = max(fits, key=lambda cell: cell["images_per_second"]["median"])
                best.append(f"{fastest['images_per_second']['median']:.1f} ({fastest['runtime']})")
        lines.append(f"| `{name}` | {own[0]['gmacs']:.2f} | {' | '.join(best)} |")
    return with_place(lines, "speed-cpu")


def int8() -> str:
    """What int8 costs cmt_nano in accuracy and saves in bytes."""
    study = record("quantize-nano")
    whole = study["evaluation"]
    lines = ["| cmt_nano | Correct | Drop, points | File, of fp32 | Speed, batch 1 |", "|---|---|---|---|---|"]
    lines.append(f"| fp32 | {whole['top1_correct']:,} of {whole['num_images']:,} | - | 100% | 1.00x |")
    for name, row in study["ways"].items():
        made, found = row["quantize"], row["evaluation"]
        lines.append(
            f"| {name} | {found['top1_correct']:,} of {found['num_images']:,} | {row['drop_points']:.2f} | "
            f"{made['bytes_after'] / made['bytes_before']:.1%} | {made['speed']['ratio']:.2f}x |"
        )
    return with_place(lines, "quantize-nano")


def ladder(name: str = "ladder-study", part: str = "ladder") -> str:
    """The ladder from DeiT to CMT, or CMT without one idea each: accuracy over seeds, and what each step changed."""
    study = record(name)
    step = "Step" if part == "ladder" else "Difference to CMT"
    lines = [
        f"| Network | Parameters | MMACs | Top-1, each seed | Mean | {step}, points (95%) |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for row in study["rows"] if row["part"] == part):
        each = ", ".join(f"{count / row['num_images']:.2%}" for count in row["correct"].values())
        said = "-" if row["difference"] is None else in_points(row["difference"])
        lines.append(
            f"| `{row['key']}` | {row['parameters'] / 1e6:.2f} M | {1e3 * row['gmacs']:.2f} | {each} | "
            f"{row['top1']['mean']:.2%} | {said} |"
        )
    return with_place(lines, name)


def micro_ladder() -> str:
    return ladder("micro-ladder")


def micro_without() -> str:
    return ladder("micro-ladder", "leave-one-out")


def micro_peers() -> str:
    return peers("micro-peers")


def grocery_transfer() -> str:
    """Fine-tuned on natural photos, beside the same networks from scratch."""
    study = record("grocery-transfer")
    total, seeds = study["data"]["test"], len(study["seeds"])
    lines = [
        f"| Test photos recognised of {total:,}, each seed | From scratch | Mean | Fine-tuned | Mean | Gain, points |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(study["rows"].items(), key=lambda item: -sum(item[1]["fine-tuned"])):
        means = {start: 100 * sum(counts) / (seeds * total) for start, counts in row.items()}
        cells = [f"{', '.join(f'{count:,}' for count in row[start])} | {means[start]:.1f}%" for start in means]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {means['fine-tuned'] - means['scratch']:+.1f} |")
    return with_place(lines, "grocery-transfer")


def peers(name: str = "nano-peers") -> str:
    """CMT beside its peers: accuracy over seeds and speed."""
    study = record(name)
    lines = [
        "| Network (1000 classes) | Parameters | MMACs | Latency | Images/s | Top-1, each seed | Mean (95%) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(study["rows"], key=lambda row: -row["trained"]["percent"]):
        found = row["trained"]
        each = ", ".join(f"{correct / total:.2%}" for correct, total in found["counts"])
        lines.append(
            f"| `{row['model']}` | {row['parameters'] / 1e6:.2f} M | {1e3 * row['gmacs']:.2f} | "
            f"{1e3 * row['latency_seconds']['median']:.1f} ms | {row['images_per_second']['median']:,.0f} | {each} | "
            f"{found['percent']:.2f}% ({found['low']:.2f} to {found['high']:.2f}) |"
        )
    return with_place(lines, name)


def gpu_study() -> str:
    """Size micro again, with more epochs and seeds: each rung beside the one below, all others beside CMT."""
    study = record("gpu-study")
    finished = {name: row for name, row in study["rows"].items() if row}
    shares = {
        name: {int(seed): one["correct"] / one["of"] for seed, one in row.items()} for name, row in finished.items()
    }
    rungs = [name for name in finished if "_ladder_" in name]
    references = {**dict(zip(rungs[1:], rungs[:-1], strict=True)), rungs[0]: None}
    lines = [
        f"| {study['epochs']} epochs | Top-1, each seed | Mean | Beside | Difference, points (95%) |",
        "|---|---|---|---|---|",
    ]
    for name, each in shares.items():
        reference = references.get(name, rungs[-1] if "_micro" in name else "cmt_ti")
        found = None if reference in (None, name) else paired_difference(each, shares[str(reference)])
        beside = "the rung below" if name in rungs[1:] else "-" if found is None else f"`{short(str(reference))}`"
        lines.append(
            f"| `{short(name)}` | {', '.join(f'{share:.2%}' for share in each.values())} | "
            f"{sum(each.values()) / len(each):.2%} | {beside} | {'-' if found is None else in_points(vars(found))} |"
        )
    return with_place(lines, "gpu-study")


IDEAS = {
    "lpu": "Local Perception Unit", "bias": "position bias", "keys": "reduced keys and values",
    "irffn": "convolution of the IRFFN",
}  # fmt: skip
STAGES = ("1", "2", "3", "4", "all")


def ideas_at_work() -> str:
    """The accuracy of a trained CMT from which an idea is taken, by stage."""
    found = record("ideas-at-work")
    whole = mean_percent(found, found["ideas"]["nothing"])
    lines = [
        f"| `cmt_micro`, {whole:.1f}% as trained | | {' | '.join(f'Stage {one}' for one in STAGES[:-1])} | All |",
        "|---" * (2 + len(STAGES)) + "|",
    ]
    for idea, said in IDEAS.items():
        for how in ("zeroed", "averaged"):
            counts = [found["ideas"].get(f"{idea} {how} {place}") for place in STAGES]
            cells = ["-" if each is None else f"{mean_percent(found, each):.1f}%" for each in counts]
            lines.append(f"| {said} | {how} | {' | '.join(cells)} |")
    return with_place(lines, "ideas-at-work")


def other_images(what: str, unit: str) -> str:
    """CMT and its peers on images of other sizes, or moved, or turned."""
    found = record("ideas-at-work")
    heads = list(found[what]["cmt_micro"])
    lines = [f"| | {' | '.join(f'{head} {unit}' for head in heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, counts in found[what].items():
        cells = [f"{mean_percent(found, counts[head]):.1f}%" if head in counts else "-" for head in heads]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def other_sizes() -> str:
    return other_images("sizes", "px")


def moved() -> str:
    return other_images("shifts", "px")


def turned() -> str:
    return other_images("turns", "degrees")


def mean_percent(found: dict[str, Any], counts: list[int]) -> float:
    """The mean over seeds."""
    return 100 * sum(counts) / (len(counts) * int(found["images"]))


def short(name: str) -> str:
    """The ladder's last rung is CMT itself."""
    return name.replace("cmt_ladder_5_irffn_", "cmt_")


def hardware() -> str:
    """Where the figures of the models were measured."""
    return measured("speed-cpu")


def first_run() -> str:
    """The first run's figures: a row a method, a column a set of photos, test photos recognised."""
    found = record("first-run")
    names = {
        "old": "before: `--recipe default`, `cmt_ti` at 96 px", "new": "**`cmtvision train`**",
        "tuned": "with what half an hour of `cmtvision tune` found", "fastai": "fastai, resnet18, 224 px",
        "fastai-small": "fastai, resnet18, 64 px", "timm": "timm's train.py, resnet18, 224 px",
        "timm-small": "timm's train.py, resnet18, 64 px",
    }  # fmt: skip
    heads = [f"{name} ({part['train']:,} photos, {part['classes']} classes)" for name, part in found["sets"].items()]
    lines = [
        f"| {found['minutes']} minutes from random weights: test photos recognised (epochs) | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for method, said in names.items():
        cells = []
        for name in found["sets"]:
            runs = [run for run in found["runs"] if (run["set"], run["method"]) == (name, method)]
            cells.append(", ".join(f"{run['correct'] / run['total']:.1%} ({run['epochs']})" for run in runs) or "-")
        if set(cells) != {"-"}:
            lines.append(f"| {said} | {' | '.join(cells)} |")
    return with_place(lines, "first-run")


def first_run_bounds() -> str:
    """How well `--minutes` was kept."""
    found = record("first-run")["bounds"]
    lines = [
        "| `--minutes` | Beside it | Took | Off by | Network, epochs | Held-out accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(found, key=lambda one: (one["minutes"], one["busy"])):
        off = one["seconds"] / 60 / one["minutes"] - 1
        minutes, seconds = divmod(round(one["seconds"]), 60)
        beside = "a busy loop" if one["busy"] else "nothing"
        lines.append(
            f"| {one['minutes']} | {beside} | {minutes}:{seconds:02d} | {off:+.1%} | "
            f"`{one['network']}` at {one['img_size']} px, {one['epochs']} | {one['held_out']:.1%} |"
        )
    return with_place(lines, "first-run")


def other_start() -> str:
    """EfficientNet-Lite0 as model and as teacher, beside the same without a teacher."""
    found = record("other-start-lite0")
    lines = ["| | Size | Epochs | Test photos recognised |", "|---|---|---|---|"]
    for row in found["methods"].values():
        epochs, shares = row["epochs"][0], ", ".join(f"{count / row['photos']:.1%}" for count in row["correct"])
        lines.append(f"| {row['what']} | {row['pixels']} px | {epochs} | {shares} |")
    return with_place(lines, "other-start-lite0")


def gpu() -> str:
    """Networks on a GPU: bfloat16, replayed as a CUDA graph, CMT plain and fused."""
    lines = ["| Network | Input, px | Batch 1, ms | Batch 64, images/s |", "|---|---|---|---|"]
    for name, row in record("gpu-h100")["parts"]["inference"]["rows"].items():
        side = row["input_size"][-1]
        for form, said in (("plain", f"`{name}`"), ("fused", f"`{name}`, fused"), ("kernels", f"`{name}`, Triton")):
            if form in row["batch 1"]:
                one, many = (row[f"batch {batch}"][form]["median_seconds"] for batch in (1, 64))
                lines.append(f"| {said} | {side} | {one * 1e3:.2f} | {64 / many:,.0f} |")
    return with_place(lines, "gpu-h100")


def gpu_kernels() -> str:
    """The Triton kernels beside the plain path, each operation launched from Python, and in a whole network."""
    found = record("kernels-h100")
    lines = ["| cmt_s in bfloat16, batch 64 | Plain, us | Kernel, us | Speedup |", "|---|---|---|---|"]
    for name, row in found["kernels"].items():
        plain, kernel = (row[way]["median_seconds"] * 1e6 for way in ("plain", "kernel"))
        lines.append(f"| {name} | {plain:,.0f} | {kernel:,.0f} | {plain / kernel:.2f} |")
    for name, part in found["network"].items():
        rows = {mode: row["median_seconds"] * 1e6 for mode, row in part["rows"].items()}
        said = f"whole network, {name.replace('_', ' ')}"
        lines.append(f"| {said} | {rows['off']:,.0f} | {rows['on']:,.0f} | {rows['off'] / rows['on']:.2f} |")
    return with_place(lines, "kernels-h100")


def native_loops() -> str:
    """A fused network with and without native loops, beside two runtimes."""
    found = record("native-loops")
    cells = [(precision, size, cell) for precision, of in found["precisions"].items() for size, cell in of.items()]
    name, pixels = found["model"], found["pixels"][0]
    lines = [
        f"| {name}, {pixels} px, images/s | " + " | ".join(f"{kind}, batch {size}" for kind, size, _ in cells) + " |",
        "|---|" + "---|" * len(cells),
    ]
    for form in cells[0][2]["forms"]:
        rows = [cell["forms"].get(form) for *_, cell in cells]
        texts = [
            "-" if row is None else f"{row['images_per_second']:.1f} ({row['against_fused']:.2f}x)" for row in rows
        ]
        said = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}.get(form, form)
        lines.append(f"| {said} | {' | '.join(texts)} |")
    best = [f"{cell['against_the_best_runtime']:.2f}x" for *_, cell in cells]
    lines.append(f"| native, against the faster of the two runtimes | {' | '.join(best)} |")
    return with_place(lines, "native-loops")


def native_training() -> str:
    """A training step with and without native loops."""
    found = record("native-training")
    precisions = found["precisions"]
    lines = [
        f"| {found['model']}, {found['pixels']} px, batch {found['batch']} | fp32, s | bf16, s |",
        "|---|---|---|",
    ]
    for form in precisions["fp32"]:
        rows = [precisions[precision].get(form) for precision in ("fp32", "bf16")]
        cells = ["-" if row is None else f"{row['seconds']:.3f} ({row['against_without']:.2f}x)" for row in rows]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    against = [f"{precisions[precision]['all']['against_plain']:.2f}x" for precision in ("fp32", "bf16")]
    lines.append(f"| all, against plain float32 | {' | '.join(against)} |")
    return with_place(lines, "native-training")


SHARES = {
    "convolutions and matrix products": "convolutions and matrix products",
    "native loops": "native loops: inside the IRFFN, LayerNorm, attention",
    "batch norm and GELU elsewhere": "batch norm and GELU elsewhere",
    "additions, copies, casts": "additions, copies, casts",
    "everything else": "everything else, the optimiser among it",
}


def step_shares() -> str:
    """Where the time of a training step goes."""
    shares = record("throughput-cpu")["training_step"]["shares"]
    lines = ["| Part of a step | float32 | bfloat16 |", "|---|---|---|"]
    for part, said in SHARES.items():
        lines.append(f"| {said} | {shares['fp32'][part]:.0%} | {shares['bf16'][part]:.0%} |")
    return with_place(lines, "throughput-cpu")


def predict_folder() -> str:
    """A folder of photos by the command, beside the version before and the parts of the work."""
    found = record("predict-folder")
    middle = {name: statistics.median(values) for name, values in found["seconds"].items()}
    start = {name: statistics.median(values) for name, values in found["start_seconds"].items()}
    parts = found["photos_per_second_of_parts"]
    lines = [
        f"| {found['photos']:,} photos of 500 x 375 px | |",
        "|---|---|",
        f"| the whole command | {middle['this']:.1f} s, before {middle['before']:.1f} s: {found['speedup']:.2f}x |",
        f"| of which the start, with one photo | {start['this']:.1f} s (before {start['before']:.1f} s) |",
        f"| after the start | {found['speedup_after_the_start']:.2f}x, {found['of_the_limit']:.0%} of the limit |",
        f"| opening, resizing and cropping alone | {parts['prepare']:,} photos/s |",
        f"| the network alone | {parts['network']:,} images/s (plain {parts['plain network']:,}) |",
        f"| other labels than before | {found['other_labels']} |",
    ]
    return with_place(lines, "predict-folder")


def explanations() -> str:
    """Deletion and insertion of each method against random orders of the same cells."""
    found = record("explanations")
    lines = [
        "| | Cells | Deletion, blurred | Insertion, blurred | Deletion, mean colour | Insertion, mean colour |",
        "|---" * 6 + "|",
    ]
    for blurred, mean in zip(found["faithfulness"]["blurred"], found["faithfulness"]["mean"], strict=True):
        gains = [rows[kind] for rows in (blurred, mean) for kind in ("deletion", "insertion")]
        cells = [f"{100 * one['gain']:+.1f} ± {100 * one['gain_95']:.1f}" for one in gains]
        lines.append(f"| {blurred['method']} | {' x '.join(map(str, blurred['grid']))} | {' | '.join(cells)} |")
    return with_place(lines, "explanations")


def data_check() -> str:
    """Planted faults found by check-data, and its cost."""
    parts = record("check-data")["parts"]
    copies, labels = parts["copies"], parts["labels"]
    lines = ["| Planted | Found | |", "|---|---|---|"]
    for kind, row in copies["kinds"].items():
        lines.append(f"| {row['planted']} copies, {kind} | {row['found']} | {row['found'] / row['planted']:.1%} |")
    lines.append(f"| all of them | recall {copies['recall']:.1%} | precision {copies['precision']:.1%} |")
    for key, said in (("same_file", "the same file"), ("same_picture", "an altered copy")):
        row = copies["leaks"][key]
        lines.append(f"| {row['planted']} held-out images trained on, {said} | {row['found']} | |")
    lines.append(
        f"| {labels['flipped']} changed labels | {labels['precision_at_k']:.1%} of the first {labels['flipped']} "
        f"listed | {labels['recall']:.1%} listed |"
    )
    lines += [
        "",
        "| Photos | Seconds | Of processor time | Peak memory | Labels agreed with |",
        "|---|---|---|---|---|",
    ]
    names = {"large": "Fashion-MNIST", "tiny-imagenet-50": "Tiny ImageNet, 50 classes", "grocery": "Grocery Store"}
    for key, said in names.items():
        row = parts[key]
        lines.append(
            f"| {said}, {row['photos']:,} | {row['seconds']:,.0f} | {row['processor_seconds']:,.0f} | "
            f"{row['peak_memory_bytes'] / 1e9:.1f} GB | {row['label_accuracy']:.0%} |"
        )
    return with_place(lines, "check-data")


def dense_counts() -> str:
    """Parameters and multiply-adds of detectors, beside the paper's."""
    lines = [
        "| | Parameters | Backbone | GMACs, layers | Paper | Difference | GMACs with attention's products |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in record("dense-counts")["counts"].items():
        lines.append(
            f"| `{name}` | {row['parameters'] / 1e6:.1f}M | {row['parts']['body']['parameters'] / 1e6:.1f}M | "
            f"{row['gmacs']['layers']:.1f} | {row['paper_gflops']} | {row['over_paper']['layers']:+.1%} | "
            f"{row['gmacs']['products']:.1f} |"
        )
    return with_place(lines, "dense-counts")


def dense_memory() -> str:
    """Peak memory of detectors, and what a pass of the backbone takes."""
    lines = ["| | Images | Position bias | Peak memory of the process |", "|---|---|---|---|"]
    for row in record("dense-counts")["memory"]:
        size = f"{row['images']} of {row['height']} x {row['width']}"
        lines.append(f"| `{row['detector']}`, {row['task']} | {size} | {row['bias']} | {row['peak_gb']:.2f} GB |")
    row = record("dense-counts")["passes"]
    seconds = ", ".join(f"{said} {value:.2f} s" for said, value in row["processor_seconds"].items())
    lines += ["", f"A pass of `{row['backbone']}` at {row['height']} x {row['width']} px on one thread: {seconds}."]
    return with_place(lines, "dense-counts")


def dense_study() -> str:
    """AP and mIoU of backbones on each task: of each seed, where there are several."""
    tasks = record("dense-study")["tasks"]
    shown = {
        "scenes, RetinaNet": ("Scenes, RetinaNet: AP", ("ap",)),
        "scenes, Mask R-CNN": ("Scenes, Mask R-CNN: AP of boxes, of masks", ("ap", "mask_ap")),
        "BCCD, RetinaNet": ("BCCD, RetinaNet: AP, AP50", ("ap", "ap50")),
        "scenes, FPN": ("Scenes, FPN: mIoU", ("miou",)),
        "CamVid, FPN": ("CamVid, FPN: mIoU", ("miou",)),
    }
    lines = [
        "| Backbone | Its MMACs at 128 px | " + " | ".join(title for title, _ in shown.values()) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for name, row in tasks["scenes, RetinaNet"]["backbones"].items():
        cells = []
        for task, (_, figures) in shown.items():
            found = tasks.get(task, {}).get("backbones", {}).get(name)
            if found is None:  # not trained
                cells.append("-")
                continue
            cells.append(", ".join(" / ".join(f"{value:.1%}" for value in found[figure]) for figure in figures))
        lines.append(
            f"| {name.replace('pretrained', 'from a classifier')} | {row['backbone_mmacs']:.0f} | {' | '.join(cells)} |"
        )
    return with_place(lines, "dense-study")


PAGES = {
    "README.md": {"at_equal_accuracy": at_equal_accuracy, "models": models, "hardware": hardware},
    "docs/comparison.md": {"published_latency": published_latency},
    "docs/results.md": {
        "runs": runs,
        "micro_ladder": micro_ladder,
        "micro_without": micro_without,
        "gpu_study": gpu_study,
        "micro_peers": micro_peers,
        "grocery_transfer": grocery_transfer,
        "ladder": ladder,
        "peers": peers,
        "transfer": transfer,
    },
    "docs/ideas-at-work.md": {
        "ideas_at_work": ideas_at_work,
        "other_sizes": other_sizes,
        "moved": moved,
        "turned": turned,
    },
    "docs/explain.md": {"explanations": explanations},
    "docs/performance.md": {
        "throughput": throughput,
        "inference": inference,
        "same_cost": same_cost,
        "int8": int8,
        "gpu": gpu,
        "gpu_kernels": gpu_kernels,
        "predict_folder": predict_folder,
        "native_loops": native_loops,
        "native_training": native_training,
        "step_shares": step_shares,
    },
    "docs/choices.md": {"first_run": first_run, "first_run_bounds": first_run_bounds},
    "docs/checking-data.md": {"data_check": data_check},
    "docs/training.md": {"other_start": other_start},
    "docs/dense.md": {"dense_memory": dense_memory, "dense_counts": dense_counts, "dense_study": dense_study},
}


def fresh(page: str, text: str) -> str:
    """A page's text with every table written anew."""
    for name, table in PAGES[page].items():
        pattern = re.compile(rf"<!-- table:{name} -->\n(?:(?!<!-- /table -->).)*<!-- /table -->", re.DOTALL)
        place = pattern.search(text)
        if place is None:
            raise SystemExit(f"{page} has no table:{name}")
        before, after = place.span()
        text = f"{text[:before]}<!-- table:{name} -->\n{table()}\n<!-- /table -->{text[after:]}"
    return text


def main() -> int:
    stale = 0
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        wanted = fresh(page, text)
        if "--check" not in sys.argv:
            (ROOT / page).write_text(wanted, encoding="utf-8")
        elif text != wanted:
            print(f"{page}: tables are stale; run python benchmarks/tables.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
