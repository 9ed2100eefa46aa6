"""Native loops: equal to PyTorch's operations and to float64, and never in the way where they cannot be built."""

import os
import stat
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from seen_norms import network

from cmtvision.models.accelerate.fusing.fuse import fuse
from cmtvision.models.accelerate.fusing.fused_layers import can_pack
from cmtvision.models.accelerate.native import operations
from cmtvision.models.accelerate.native.library import VARIABLE, library

needs_compiler = pytest.mark.skipif(library() is None, reason="no compiler for native loops here")


def close(found, expected, dtype, rtol=1e-5, atol=2e-5):
    """Near float64; of bfloat16 maps what is written is rounded, and no more."""
    assert found.dtype == dtype
    if dtype == torch.bfloat16:
        rtol, atol = rtol + 2**-8, atol + 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


TYPES = pytest.mark.parametrize("dtype", operations.TYPES, ids=["float32", "bfloat16"])


@needs_compiler
@TYPES
@pytest.mark.parametrize("channels", [1, 7, 16, 46, 64, 129])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_layer_norm_is_pytorchs(channels, rows, dtype):
    x = (3 + 2 * torch.randn(2, rows, 3, channels)).to(dtype)
    expected = F.layer_norm(x.double(), (channels,), eps=1e-6)
    close(operations.layer_norm(x, 1e-6), expected, dtype)


@needs_compiler
@TYPES
@pytest.mark.parametrize("channels", [1, 5, 16, 32, 46, 166, 331])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 2), (4, 1), (7, 9)])
@pytest.mark.parametrize("gelu", [False, True])
def test_depthwise_is_a_convolution_of_a_shifted_map(channels, size, gelu, dtype):
    """A constant added before a zero-padded convolution is not there in the padding: what ``absent`` is for."""
    x, shift = torch.randn(2, *size, channels).to(dtype), torch.randn(channels)
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    maps = x.permute(0, 3, 1, 2).double() + shift.double()[:, None, None]
    expected = F.conv2d(maps, weight.double(), bias.double(), padding=1, groups=channels).permute(0, 2, 3, 1)
    expected = F.gelu(expected) if gelu else expected
    taps = weight.view(channels, 9).t().contiguous()
    absent = taps * shift
    close(operations.depthwise(x, taps, bias + absent.sum(dim=0), absent, gelu), expected, dtype)
    plain = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=1, groups=channels)
    plain = (F.gelu(plain) if gelu else plain).permute(0, 2, 3, 1)
    close(operations.depthwise(x, taps, bias, None, gelu), plain, dtype)


@needs_compiler
@TYPES
@pytest.mark.parametrize("channels", [1, 16, 46, 64, 129])
@pytest.mark.parametrize(("size", "k"), [((2, 2), 2), ((8, 4), 4), ((6, 10), 2), ((16, 8), 8)])
def test_a_convolution_of_its_own_stride_is_pytorchs(channels, size, k, dtype):
    x = torch.randn(3, *size, channels).to(dtype)
    weight, bias = torch.randn(channels, 1, k, k), torch.randn(channels)
    expected = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), stride=k, groups=channels)
    taps = weight.view(channels, k * k).t().contiguous()
    close(operations.reduce(x, taps, bias, k), expected.permute(0, 2, 3, 1), dtype, atol=5e-5)


@needs_compiler
def test_gelu_is_exact_wherever_a_float_is():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38])])
    channels = len(x)
    taps = torch.zeros(9, channels)
    taps[4] = 1
    found = operations.depthwise(x.view(1, 1, 1, -1), taps, torch.zeros(channels), None, gelu=True).view(-1)
    expected = F.gelu(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)


@needs_compiler
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "width"),
    [(196, 49, 4, 64), (1, 1, 1, 1), (7, 3, 2, 46), (20, 17, 1, 8), (13, 64, 3, 33)],
)
@pytest.mark.parametrize("with_bias", [False, True])
@TYPES
def test_attention_is_pytorchs(queries, keys, heads, width, with_bias, dtype):
    q, kv = torch.randn(2, queries, heads * width).to(dtype), torch.randn(2, keys, 2 * heads * width).to(dtype)
    bias = 3 * torch.randn(1, heads, queries, keys) if with_bias else None
    q4 = q.unflatten(2, (heads, width)).transpose(1, 2).double()
    k4, v4 = kv.unflatten(2, (2, heads, width)).permute(2, 0, 3, 1, 4).double().unbind(0)
    mask = None if bias is None else bias.double()
    expected = F.scaled_dot_product_attention(q4, k4, v4, attn_mask=mask).transpose(1, 2).flatten(2)
    close(operations.attention(q, kv, bias, heads, width**-0.5), expected, dtype, atol=1e-5)


@needs_compiler
def test_attention_bears_scores_far_apart_and_far_away():
    q, kv = torch.full((1, 4, 8), 30.0), torch.randn(1, 5, 16)
    bias = torch.tensor([0.0, -1e4, 500.0, -500.0, 80.0]).expand(1, 1, 4, 5).contiguous()
    k, v = kv.double().chunk(2, dim=2)
    expected = F.scaled_dot_product_attention(q.double()[:, None], k[:, None], v[:, None], attn_mask=bias.double())[
        :, 0
    ]
    found = operations.attention(q, kv, bias, 1, 8**-0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("cmt_nano", (32, 32), {}), ("cmt_ti", (96, 160), {}), ("cmt_micro", (64, 64), {"rel_pos": None}),
     ("cmt_nano", (37, 61), {"lpu": False})],
)  # fmt: skip
def test_a_fused_network_gives_the_same_numbers_with_them(name, size, options):
    model = network(name, img_size=size, **options)
    images = torch.randn(3, 3, *size)
    with torch.inference_mode():
        expected = model.double()(images.double())
        found = fuse(model.float(), size)(images)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


@needs_compiler
@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="no bfloat16 in oneDNN here")
def test_a_fused_bfloat16_network_is_no_less_exact_with_them(monkeypatch):
    model = network("cmt_ti", img_size=(96, 160))
    images = torch.randn(3, 3, 96, 160)
    fused = fuse(model, (96, 160), dtype=torch.bfloat16)

    def difference():
        with torch.inference_mode():
            expected = deepcopy(model).double()(images.double())
            return float((fused(images) - expected).norm() / expected.norm())

    with_them = difference()
    for name in ("layer_norm", "depthwise", "reduce", "attention"):
        monkeypatch.setattr(operations, name, None)  # whatever calls one fails now
    with pytest.raises(TypeError):
        difference()
    monkeypatch.setattr(operations, "takes", lambda _: False)
    assert with_them < 1.3 * difference()


@needs_compiler
def test_any_number_of_threads_and_a_copy_give_the_same_numbers():
    fused = fuse(network(), 32)
    images = torch.randn(2, 3, 32, 32)
    one = ThreadPoolExecutor(1, initializer=lambda: (torch.get_num_threads(), torch.set_num_threads(1)))
    with torch.inference_mode():
        expected = fused(images)
    with one, torch.inference_mode():
        torch.testing.assert_close(one.submit(lambda: fused(images)).result(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(deepcopy(fused)(images), expected, rtol=0, atol=1e-5)


def test_what_they_do_not_know_is_pytorchs():
    x = torch.randn(2, 4, 4, 8)
    assert operations.takes(x) == operations.takes(x.bfloat16()) == (library() is not None)
    assert not operations.takes(x.double())
    assert not operations.takes(x.half())
    assert not operations.takes(x.permute(0, 3, 1, 2))
    assert not operations.takes(x.to("meta"))
    asked = x.clone().requires_grad_()
    assert not operations.takes(asked)
    with torch.no_grad():
        assert operations.takes(asked) == (library() is not None)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that this way of tracing will go
        torch.jit.trace(lambda y: (seen.append(operations.takes(y)), y + 1)[1], x, check_trace=False)
    assert seen == [False]


# A process of its own for each machine that is not like this one: the library is opened once a process.
CODE = (
    "import logging, torch; logging.basicConfig(level=logging.INFO)\n"
    "from cmtvision.models import create_model\n"
    "from cmtvision.models.accelerate.fusing.fuse import fuse\n"
    "from cmtvision.models.accelerate.native.library import library\n"
    "torch.manual_seed(0); model = create_model('cmt_nano', num_classes=3).eval()\n"
    "images = torch.randn(2, 3, 32, 32)\n"
    "with torch.inference_mode(): difference = (fuse(model, 32)(images) - model(images)).abs().max()\n"
    "print('same' if difference < 1e-5 else difference, library() is not None)\n"
)


def process(cache, path=None, **environment):
    """What CODE prints, and what is logged, with a cache folder and a PATH."""
    more = {"XDG_CACHE_HOME": str(cache), **environment} | ({} if path is None else {"PATH": str(path)})
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def compiler(folder, script):
    """A g++ that is a script."""
    folder.mkdir()
    file = folder / "g++"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return folder


@pytest.fixture
def quick(tmp_path):
    """A PATH whose g++ takes no time: what it links is the library that this process has opened."""
    script = (
        '[ "$1" = --version ] && exec /usr/bin/env PATH=/usr/bin:/bin g++ --version\n'
        'for word; do [ "$last" = -o ] && out=$word; last=$word; done\n'
        f'cp {library()._name} "$out" && chmod 775 "$out"'  # a linker leaves it to the umask, here 002
    )
    return f"{compiler(tmp_path / 'quick', script)}:/usr/bin:/bin"


def files(cache):
    return sorted(path.suffix for path in (Path(cache) / "cmtvision" / "native").iterdir())


def test_without_a_compiler_pytorch_computes(tmp_path):
    (tmp_path / "nothing").mkdir()
    said, logged = process(tmp_path / "cache", path=tmp_path / "nothing")
    assert said == "same False"
    assert "no compiler" in logged
    assert process(tmp_path / "cache", **{VARIABLE: "off"})[0] == "same False"


def test_a_compiler_that_fails_is_asked_once(tmp_path):
    path = compiler(tmp_path / "bin", f'echo called >> {tmp_path}/calls; [ "$1" = --version ] || exit 3')
    for _ in range(2):
        said, logged = process(tmp_path / "cache", path=f"{path}:/usr/bin:/bin")
        assert said == "same False"
        assert "failed" in logged
    assert files(tmp_path / "cache") == [".failed"]
    assert (tmp_path / "calls").read_text().count("called") == 5  # twice for its version, once for each file


def test_a_compiler_that_was_killed_is_asked_again(tmp_path):
    script = (
        '[ "$1" = --version ] || { echo "g++: fatal error: Killed signal terminated program cc1plus" >&2; exit 1; }'
    )
    path = compiler(tmp_path / "bin", script)
    said, logged = process(tmp_path / "cache", path=f"{path}:/usr/bin:/bin")
    assert said == "same False"
    assert "Killed" in logged
    assert files(tmp_path / "cache") == []


@needs_compiler
def test_what_a_compiler_writes_and_cannot_be_opened_is_left(tmp_path):
    script = 'while [ $# -gt 1 ]; do shift; [ "$1" = -o ] && echo no library > "$2"; done; exit 0'
    path = compiler(tmp_path / "bin", script)
    said, logged = process(tmp_path / "cache", path=f"{path}:/usr/bin:/bin")
    assert said == "same False"
    assert "no native loops" in logged


@needs_compiler
def test_it_is_compiled_once_and_anew_for_another_processor(tmp_path):
    assert process(tmp_path / "cache")[0] == "same True"
    (built,) = (tmp_path / "cache" / "cmtvision" / "native").iterdir()
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700
    before = built.stat().st_mtime_ns
    assert process(tmp_path / "cache")[0] == "same True"
    assert built.stat().st_mtime_ns == before
    older = CODE.replace(
        "import logging",
        "import cmtvision.machine as machine; machine.instruction_sets = lambda: ['sse2']\nimport logging",
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", older], env=environment, check=True, capture_output=True)
    assert len(files(tmp_path / "cache")) == 2


@needs_compiler
def test_several_processes_may_begin_at_once(tmp_path, quick):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: process(tmp_path / "cache", path=quick)[0], range(3)))
    assert found == ["same True"] * 3
    assert files(tmp_path / "cache") == [".so"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    said, logged = process(tmp_path / "cache")
    assert said == "same False"
    assert "no native loops" in logged


@needs_compiler
@pytest.mark.parametrize("place", ["folder", "file"])
def test_what_others_could_have_written_is_not_opened(tmp_path, place, quick):
    process(tmp_path / "cache", path=quick)
    folder = tmp_path / "cache" / "cmtvision" / "native"
    (built,) = folder.iterdir()
    before = built.stat().st_ino
    (folder if place == "folder" else built).chmod(0o777)
    said, logged = process(tmp_path / "cache", path=quick)
    if place == "file":  # in a folder that is ours alone it is built again
        assert said == "same True"
        assert built.stat().st_ino != before
        assert stat.S_IMODE(built.stat().st_mode) == 0o700
        return
    assert said == "same False"
    assert "somebody else" in logged


@needs_compiler
def test_a_failure_of_one_process_does_not_hide_what_another_built(tmp_path, quick):
    assert process(tmp_path / "cache", path=quick)[0] == "same True"
    (built,) = (tmp_path / "cache" / "cmtvision" / "native").iterdir()
    built.with_suffix(".failed").write_text("took too long")
    assert process(tmp_path / "cache", path=quick)[0] == "same True"


def test_a_compiler_may_say_anything_of_itself(tmp_path):
    path = compiler(tmp_path / "bin", r"""[ "$1" = --version ] && printf 'g\377++\n' || exit 3""")
    said, logged = process(tmp_path / "cache", path=f"{path}:/usr/bin:/bin")
    assert said == "same False"
    assert "failed" in logged
