"""What a check of a data set gives: findings with their images, the most serious first, and what was not checked."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cmtvision.quality.listing import Photo

Severity: TypeAlias = Literal["serious", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "note")


@dataclass(frozen=True)
class Item:
    """One example of a finding.

    Attributes:
        photos: the image; or those that belong together, such as two copies. Empty for a class.
        text: what is the matter with it, in a few words.
        score: what the examples of a finding are ordered by, the worst first; its meaning depends on the finding.
        suggested: the class that an image probably belongs to; '' where none is suggested.
    """

    photos: tuple[Photo, ...]
    text: str
    score: float = 0.0
    suggested: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of fault, with every example of it.

    Attributes:
        kind: its name in JSON: 'leakage', 'label-errors' ...
        severity: 'serious' (a figure measured on this data would be wrong, or training would fail), 'warning' (worth
            a look before training) or 'note'.
        title: its name in words.
        summary: what was found, one sentence with counts.
        advice: what to do about it, one sentence.
        items: the examples, the worst first.
    """

    kind: str
    severity: Severity
    title: str
    summary: str
    advice: str
    items: list[Item] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The finding for JSON, with every example."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": len(self.items),
            "summary": self.summary,
            "advice": self.advice,
            "items": [_item_dict(item) for item in self.items],
        }


@dataclass(frozen=True)
class DataCheck:
    """The result of checking a data set.

    Attributes:
        source: the data, as given.
        photos: every image that can be read, in the order of their names.
        unreadable: images that cannot be read, each with the reason.
        classes: class names, sorted unless the data has an order of its own.
        split_source: see ``cmtvision.data.DatasetIndex``.
        findings: what was found, the most serious first.
        passed: the titles of checks that found nothing.
        not_checked: checks that were not made, each with the reason.
        seconds: how long it took.
        label_accuracy: the share of labels that out-of-fold predictions agree with; None where they were not made.
    """

    source: str
    photos: list[Photo]
    unreadable: list[tuple[Photo, str]]
    classes: list[str]
    split_source: str
    multi_label: bool
    findings: list[Finding]
    passed: list[str]
    not_checked: list[tuple[str, str]]
    seconds: float
    label_accuracy: float | None = None

    @property
    def is_serious(self) -> bool:
        """Whether a figure measured on this data would be wrong, or training would fail."""
        return any(finding.severity == "serious" for finding in self.findings)

    def finding(self, kind: str) -> Finding | None:
        """The finding of a kind; None where there is none."""
        return next((one for one in self.findings if one.kind == kind), None)

    def count(self, part: str) -> int:
        """How many readable images a part has."""
        return sum(photo.part == part for photo in self.photos)

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return {
            "data": self.source,
            "photos": len(self.photos),
            "classes": len(self.classes),
            "parts": {part: self.count(part) for part in ("train", "val", "test")},
            "split": self.split_source,
            "serious": self.is_serious,
            "findings": [finding.to_dict() for finding in self.findings],
            "passed": self.passed,
            "not_checked": [{"check": name, "reason": reason} for name, reason in self.not_checked],
            "label_accuracy": self.label_accuracy,
            "seconds": round(self.seconds, 1),
        }


def _item_dict(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = {
        "photos": [{"path": one.name, "label": one.label, "part": one.part} for one in item.photos],
        "text": item.text,
        "score": round(item.score, 4),
    }
    return {**found, "suggested": item.suggested} if item.suggested else found
