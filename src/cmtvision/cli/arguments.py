"""What several commands ask for in the same words."""

from collections.abc import Sequence

DATA_HELP = (
    "Folder of class folders; CSV or Parquet table; folder or URL of WebDataset shards; torchvision:NAME; hf:NAME."
)


def spelled_out(words: Sequence[str]) -> list[str]:
    """A command line in which ``--resume``, which may stand alone or before 'auto', always has its value."""
    out: list[str] = []
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        out.append("--resume=yes" if word == "--resume" and following not in ("auto", "yes", "no") else word)
    return out
