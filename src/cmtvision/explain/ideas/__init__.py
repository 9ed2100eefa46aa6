"""The five ideas made visible: one photo's way through a CMT, as a page to look at and to click in."""

from cmtvision.explain.ideas.page import write_ideas

__all__ = ["write_ideas"]
