"""Where weights come from: files through our safe reader, downloads, and one clear error line if there are none.

Our own models download from an address (weights/fetch.py); those of timm mostly from the Hugging Face Hub, by its own
library, which resumes and knows HF_HOME and HF_HUB_OFFLINE.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants as hub
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    load_pretrained,
    load_state_dict_from_hf,
    resolve_pretrained_cfg,
)

from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.weights import read_state_dict
from cmtvision.weights.fetch import FetchError, cache_folder, fetch
from cmtvision.weights.files import read_pickle
from cmtvision.weights.network import BRIEFLY, innermost, missing, unreachable

TRAIN_IT = "train it (`cmtvision train`), or name a file: pretrained_cfg_overlay={'file': 'model.safetensors'}"
SOURCES = ("state_dict", "file", "hf_hub_id", "url")
SOURCE_ARGUMENTS = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments of timm.create_model that name another source of weights, or another cache."""
_ALSO_LOADERS = {"pruned", "features_only", "feature_cls", "out_indices", "num_classes", "device", "dtype", "kwargs"}
HOSTED = ("hf-hub:", "hf_hub:", "local-dir:")
"""How timm's names of models begin that are described where they are kept, not in timm."""
_OF_THE_NETWORK = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub"}
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


def loader_arguments(names: Iterable[str]) -> list[str]:
    """Those of the arguments that belong to the loader, not to the network: where weights come from, on what device.

    They are whatever timm's factories take by name, so that an argument a later timm adds is known as well.
    """
    factories = {name for make in (timm.create_model, build_model_with_cfg) for name in signature(make).parameters}
    return sorted(name for name in names if name in factories | _ALSO_LOADERS or name.startswith("pretrained"))


def refuse_missing_weights(name: str, pretrained: bool, kwargs: dict[str, Any], advice: str) -> None:
    """Check what ``pretrained`` asks of a model whose own configuration names no weights.

    A source of the caller's own, as ``pretrained_cfg_overlay={'file': ...}``, is accepted.

    Raises:
        ConfigError: no source of weights is named; ``advice`` says what to do instead.
    """
    if not pretrained:
        return
    for key in ("pretrained_cfg", "pretrained_cfg_overlay"):
        given = kwargs.get(key) or {}
        if any((given.get(s) if isinstance(given, dict) else getattr(given, s, None)) for s in SOURCES):
            return
    raise ConfigError(f"{name}: there are no weights to download for it; {advice}")


def read_by_us(name: str, pretrained: bool, kwargs: dict[str, Any]) -> None:
    """Make a model's initial weights available, to be read by its ``load_pretrained``; changes the arguments in place.

    What must be downloaded is brought to the cache, where timm looks first. timm would read a source named in
    ``pretrained_cfg_overlay`` with torch.load, unless told otherwise.

    Raises:
        FetchError: the download failed.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("file") or overlay.get("url"):
        kwargs["pretrained_cfg_overlay"] = overlay = {"custom_load": True, **overlay}
    if pretrained:
        cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
        if not (cfg.state_dict or cfg.file or cfg.hf_hub_id or cfg.source):
            _fetch_url(cfg, kwargs.get("cache_dir"), read_state_dict)


def released_weights(names: Sequence[str]) -> tuple[list[str], str]:
    """Those of our models whose released weights are in the cache or whose server answers, and why others have none.

    Each server is asked briefly, and no further one after the first that does not answer.
    """
    found, reason = [], ""
    for name in names:
        url, folder = where_released(name)
        if (folder / Path(urlsplit(url).path).name).is_file():
            found.append(name)
        elif not reason:
            reason = "HF_HUB_OFFLINE is set" if hub.HF_HUB_OFFLINE else missing(url, timeout=BRIEFLY)
            if not reason:
                found.append(name)
    return found, reason


def where_released(name: str) -> tuple[str, Path]:
    """The address of the released weights of a model of ours, and the folder that they are looked for in first.

    Raises:
        ConfigError: there are none.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not isinstance(cfg.url, str):
        raise ConfigError(f"{name}: no weights of it were released")
    return cfg.url, cache_folder()


def fetch_weights(name: str) -> None:
    """Bring the released weights of a model to the cache, so that making it needs no network.

    Args:
        name: of ours or of timm's; what is described elsewhere (``hf-hub:``) brings its description along.

    Raises:
        FetchError: no network, or nothing whole there.
    """
    with explained(name):
        check_source(name)
        if name.startswith(HOSTED):
            timm.create_model(name, pretrained=True)  # only its description says where the weights are
            return
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is not None and cfg.hf_hub_id and cfg.hf_hub_filename:
            load_state_dict_from_hf(cfg.hf_hub_id, cfg.hf_hub_filename)
        elif cfg is not None and cfg.hf_hub_id:
            load_state_dict_from_hf(cfg.hf_hub_id)


def check_source(name: str) -> None:
    """Before timm asks for the released weights of a model: fetch those that have an address, try the Hub for others.

    Raises:
        FetchError: they did not come, or the Hub cannot be reached and its cache has nothing of that model.
    """
    cfg = None if name.startswith(HOSTED) else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is not None and not cfg.hf_hub_id:
        if not cfg.file and not cfg.state_dict:
            _fetch_url(cfg, None, read_state_dict if cfg.custom_load else _opens)
        return
    if name.startswith("local-dir:"):
        return
    repository = _repository(name, cfg)
    folder = Path(hub.HF_HUB_CACHE) / repo_folder_name(repo_id=repository.partition("@")[0], repo_type="model")
    if not folder.is_dir() and not hub.HF_HUB_OFFLINE:
        reason = unreachable(hub.ENDPOINT)  # its own library would try for a minute
        if reason:
            raise _failed(name, reason)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the errors of timm, the Hub's library and Python for a failed download of weights into one line.

    Raises:
        FetchError: in the place of theirs.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, CheckpointError | ConfigError)
        theirs = isinstance(error, OSError | HTTPException | SafetensorError | UnpicklingError)
        if ours or not (theirs or type(error).__module__.partition(".")[0] in _OF_THE_NETWORK):
            raise
        raise _failed(name, innermost(error)) from error


def _failed(name: str, reason: str) -> FetchError:
    """Advice if weights that timm names are not available."""
    if name.startswith("local-dir:"):
        return FetchError(f"model {name}: {reason}", "expected a folder with config.json and weights in it")
    cfg = None if name.startswith(HOSTED) else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is not None and not cfg.hf_hub_id:
        return FetchError(f"model {name}: {cfg.url} cannot be used ({reason})", "delete what is in the cache of it")
    repository = _repository(name, cfg)
    if hub.HF_HUB_OFFLINE:
        fault = f"model {name}: {repository} of the Hugging Face Hub is not in the cache, and HF_HUB_OFFLINE is set"
    else:
        fault = f"model {name}: {repository} cannot be fetched from the Hugging Face Hub ({reason})"
    remedy = f"run `hf download {repository}` where there is a network and copy what it says to {hub.HF_HUB_CACHE}"
    return FetchError(fault, remedy)


def _repository(name: str, cfg: PretrainedCfg | None) -> str:
    """The Hub's name of where a model's weights are."""
    return str(cfg.hf_hub_id) if cfg is not None else name.partition(":")[2]


def _fetch_url(cfg: PretrainedCfg, folder: str | Path | None, check: Callable[[Path], object]) -> None:
    """Bring what a configuration names to where timm looks for it."""
    if not cfg.url:
        return
    url, file = (cfg.url, None) if isinstance(cfg.url, str) else cfg.url
    fetch(url, folder, file, check)


def _opens(path: Path) -> None:
    """Refuse a torn file of a kind that we can open without knowing the network; timm reads the others."""
    if path.suffix == ".safetensors":
        read_state_dict(path)
    elif path.suffix in _PICKLES:
        read_pickle(path)


def load_file(model: Any, path: str | Path, filter_fn: Callable[..., Any]) -> None:
    """Load a file of weights by our safe reader; timm adapts classifier and channels, ``filter_fn`` the rest.

    Raises:
        CheckpointError: where the file cannot be read safely, or ``filter_fn`` says that it belongs elsewhere.
    """
    cfg = dict(model.pretrained_cfg, state_dict=read_state_dict(path), custom_load=False)
    load_pretrained(model, cfg, num_classes=model.num_classes, in_chans=model.in_chans, filter_fn=filter_fn)
