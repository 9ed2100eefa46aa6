"""Images worth looking at: the worst mistakes, the most doubtful answers, and examples of the confused pairs.

The worst mistake is the one with the highest loss, -log p of the true class: the model was sure, and wrong. The most
doubtful answer is the one that leads the next class by the least.
"""

from typing import NamedTuple

import numpy as np

from cmtvision.artefact import Predictor
from cmtvision.report.answers import Answers
from cmtvision.report.maps import explanation_maps
from cmtvision.report.pictures import Card, Group, cards_of
from cmtvision.report.statistics import ConfusedPair


class PairPictures(NamedTuple):
    """A confused pair with some of its images, the surest mistakes first."""

    pair: ConfusedPair
    cards: list[Card]


class Examples(NamedTuple):
    """The section: rows of pictures, and a note where maps are missing."""

    groups: list[Group]
    note: str


def examples(answers: Answers, predictor: Predictor, per_group: int) -> Examples:
    """The worst mistakes and the most doubtful answers, at most ``per_group`` of each, with maps where possible."""
    wrong = np.flatnonzero(~answers.right)
    badness = answers.probability[wrong] if answers.several else -answers.true_probability[wrong]
    worst = wrong[np.lexsort((-answers.probability[wrong], -badness))][:per_group]
    doubtful = np.argsort(answers.margin, kind="stable")
    doubtful = doubtful[~np.isin(doubtful, worst)][:per_group]
    places = [*worst.tolist(), *doubtful.tolist()]
    seen = answers.at(places)
    looked, note = explanation_maps(predictor, [one.path for one in seen])
    cards = cards_of(seen, looked)
    groups = [
        Group(
            "Worst mistakes",
            cards[: len(worst)],
            "Sure and wrong. Often it is the label that is wrong, or the picture shows both.",
        ),
        Group(
            "Most doubtful answers",
            cards[len(worst) :],
            "Here the next class was nearly as probable; a person should look, or a second picture be taken.",
        ),
    ]
    return Examples([group for group in groups if group.cards], note)


def pair_pictures(answers: Answers, pairs: list[ConfusedPair], per_pair: int) -> list[PairPictures]:
    """Pictures of confused pairs: images of the one class that were taken for the other."""
    wanted: dict[tuple[str, str], list[int]] = {(pair.true, pair.predicted): [] for pair in pairs}
    for place in np.flatnonzero(~answers.right)[
        np.argsort(-answers.probability[~answers.right], kind="stable")
    ].tolist():
        found = wanted.get((answers.true[place], answers.said[place]))
        if found is not None and len(found) < per_pair:
            found.append(place)
    return [PairPictures(pair, cards_of(answers.at(wanted[pair.true, pair.predicted]))) for pair in pairs]
