"""``CaptionPipeline``: what a domain does to its captions, for training and evaluation alike."""

from __future__ import annotations

import random

from domainclip.config.text_preprocessing import TextPreprocessing
from domainclip.data.captions.abbreviations import AbbreviationExpander
from domainclip.data.captions.given_texts import plain_text
from domainclip.data.captions.negation import NegationCues
from domainclip.data.captions.normalise import normalise_characters, normalise_units
from domainclip.data.captions.truncation import CountTokens, SentenceTruncator
from domainclip.data.captions.views import CaptionViews

VIEWS = 8
"""Views of a caption that training draws from. Each is tokenized once, before the first step."""
_REMEMBERED = 200_000


class CaptionPipeline:
    """Caption → caption, without chance: characters, units, abbreviations, letter case, length.

    Settings that are all off leave what ``plain_text`` does, which always comes first. Applied twice it does the
    same as once. ``views`` is for training only.

    Args:
        settings: The domain's steps.
        count_tokens: The model's count of tokens, start and end included.
        limit: The model's limit in tokens, start and end included. Without it or ``count_tokens`` nothing is shortened
            here, and the tokenizer cuts.

    Raises:
        ConfigurationError: The glossary is missing or wrong.
    """

    def __init__(
        self, settings: TextPreprocessing, count_tokens: CountTokens | None = None, limit: int | None = None
    ) -> None:
        self.settings = settings
        glossary = settings.load()
        self.cues = NegationCues(glossary.negations if glossary else ())
        self._expand = AbbreviationExpander(glossary) if glossary and settings.expand_abbreviations else None
        self._views = CaptionViews(settings.synonym_fraction, settings.section_dropout, glossary, self.cues)
        shortens = settings.truncation == "sentences" and count_tokens is not None and limit is not None
        self._truncator = SentenceTruncator(count_tokens, limit, self.cues) if shortens else None  # type: ignore[arg-type]
        self._known: dict[str, str] = {}

    def __call__(self, caption: str) -> str:
        found = self._known.get(caption)
        if found is None:
            found = self.shortened(self.rewritten(caption))
            if len(self._known) < _REMEMBERED:
                self._known[caption] = found
        return found

    def rewritten(self, caption: str) -> str:
        """The caption in the domain's words, at full length.

        Args:
            caption: The caption as the data have it.

        Returns:
            The caption after every step but the last, which shortens it.
        """
        text = plain_text(caption)
        if self.settings.normalise:
            text = normalise_characters(text)
        if self.settings.normalise_units:
            text = normalise_units(text)
        if self._expand is not None:
            text = self._expand(text)
        return text.lower() if self.settings.lowercase else text

    def shortened(self, text: str) -> str:
        """What is left of a rewritten caption within the token limit.

        Args:
            text: From ``rewritten``.

        Returns:
            The text, as ``SentenceTruncator.cut`` leaves it; itself where the tokenizer is to cut.
        """
        return self._truncator.cut(text) if self._truncator is not None else text

    @property
    def has_views(self) -> bool:
        return self.settings.synonym_fraction > 0 or self.settings.section_dropout > 0

    def views(self, caption: str, seed: int, count: int = VIEWS) -> list[str]:
        """Draw views of a caption, from numbers that depend on seed and caption alone.

        Args:
            caption: The caption as the data have it.
            seed: The run's seed.
            count: How many are drawn.

        Returns:
            ``count`` views; equal ones among them say how likely a view is.
        """
        text = self.rewritten(caption)
        drawn = [self._views.draw(text, random.Random(f"{seed}/{index}/{text}")) for index in range(count)]
        return [self.shortened(view.lower() if self.settings.lowercase else view) for view in drawn]
