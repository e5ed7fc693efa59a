"""Does the text tower know the domain's terms? Synonyms, abbreviations and negations of a glossary.

A text tower that has never met "CXR" puts it beside "CX" and "CR", not beside "chest radiograph"; one that reads
captions as bags of words puts "no fracture" beside "fracture" (Yuksekgonul et al. 2023, "When and why vision-language
models behave like bags-of-words"; Alhamoud et al. 2025, "Vision-language models do not understand negation").

The terms are encoded as they stand. An embedder that writes abbreviations out first would compare a text with itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score
from torch import Tensor

from domainclip.config.glossary import Glossary
from domainclip.data.captions.text_transform import plain_text
from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.evaluation.protocols import CallableEvaluator, Embedder, EvaluationResult, LabelledPair
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext
from domainclip.evaluation.shared import rows_for
from domainclip.metrics.bootstrap import Sums, intervals_of, mean_of
from domainclip.metrics.metric import METRICS, Interval, Metric
from domainclip.metrics.retrieval import ranks_of_best_hit

PARAPHRASES = ("findings: {}", "this shows {}", "a picture of {}")
"""Frames that leave what is claimed as it is, for nouns and adjectives alike: what a negation is held against."""
PRESENCE_TEMPLATES = (("{}", "no {}"),)
"""Presence and absence, where the domain's prompt pack has no pairs of its own."""
_LISTED = 30
_NOTHING_TO_NEGATE = re.compile(
    r"^(no|not|non|without|absent|negative|other|unlabelled|unknown)\b|\b(normal|healthy)\b"
)


class TerminologyEvaluator(CallableEvaluator):
    """Scores a text tower on a ``Glossary``, and negation on labelled images where ``pairs`` are given.

    Terms are the members of synonym groups, the abbreviations and their expansions, each once (letter case aside).
    For every term with another of its meaning, all other terms are ranked by cosine:

    - ``term_Hits@1``, ``term_Hits@5``, ``term_MRR``: whether one of its meaning comes first, among the first five, and
      the mean of 1 / its rank; ``synonym_Hits@1`` and ``abbreviation_Hits@1`` are of those terms alone. In 0…1; ties
      count against the model. An abbreviation of several senses may find any of them.
    - ``negation_accuracy``: how often a statement is nearer to a paraphrase of itself than to its negation, averaged
      over ``negation_pairs``; chance is 0.5. ``negation_drop``: the mean difference of the two cosines, in -2…2.
    - ``image_negation_accuracy``: for each class, whether images of it are nearer to "X" than to "no X", and other
      images the other way round: mean of the two fractions, averaged over the classes; 0.5 for a model that is deaf to
      the negation, whichever of the two it prefers. ``image_negation_auroc``: how well the difference of the two
      cosines tells those images apart, averaged over the classes; 0.5 is chance.

    Classes that are negations themselves ("normal", "no finding") are left out of the last two. What the glossary or
    the rows cannot support is left out.

    ``encode_terms`` encodes terms as they stand, where the embedder would write abbreviations out.

    Raises:
        DataError: Nothing is left.
    """

    name = "terminology"
    primary_metric = "term_Hits@1"
    greater_is_better = True

    def __init__(
        self,
        glossary: Glossary,
        pairs: Sequence[LabelledPair] = (),
        presence_templates: Sequence[tuple[str, str]] = PRESENCE_TEMPLATES,
        class_names: Mapping[str, Sequence[str]] | None = None,
        encode_terms: Callable[[list[str]], Tensor] | None = None,
        resamples: int = 0,
    ) -> None:
        self.encode_terms, self.resamples = encode_terms, resamples
        self.terms, self.same_meaning, self._kinds = _vocabulary(glossary)
        self.negation_pairs = list(glossary.negation_pairs)
        self._paraphrases = [_paraphrases(statement, glossary.synonyms) for statement, _ in self.negation_pairs]
        items = dict.fromkeys((pair.image_path, pair.label) for pair in pairs if pair.label is not None)
        labels = sorted({label for _, label in items if label is not None})
        self.classes = [label for label in labels if not _NOTHING_TO_NEGATE.search(label.casefold())]
        if len(labels) < 2:
            self.classes = []
        self.paths = [path for path, _ in items] if self.classes else []
        self._labels = [label for _, label in items] if self.classes else []
        self._claims = {
            label: _claims(label, (class_names or {}).get(label, [label]), presence_templates, self.negation_pairs)
            for label in self.classes
        }
        if not self.terms and not self.negation_pairs and not self.classes:
            raise DataError(
                "Nothing to score terminology by: the glossary has no synonyms, abbreviations or negation pairs, and "
                "the rows have no two classes"
            )

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of this embedder.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        return self.score(embed.encode_images(self.paths) if self.paths else None, embed.encode_texts)

    def score(
        self,
        image_embeds: Float[Tensor, "images dim"] | None,
        encode_texts: Callable[[list[str]], Tensor],
    ) -> EvaluationResult:
        """The result from embeddings of ``self.paths`` (None: without images), for a caller who has them already.

        From ``resamples`` come the intervals (95 %) of what is scored on texts alone: meanings are drawn anew, with all
        their terms, and negation pairs.

        Args:
            image_embeds: A row for each of ``paths``, or None.
            encode_texts: Embeds statements and claims.

        Returns:
            The result.
        """
        encode_terms = self.encode_terms or encode_texts
        metrics: dict[str, float] = {}
        intervals: dict[str, Interval] = {}
        details: dict[str, Any] = {
            "n_terms": len(self.terms),
            "n_negation_pairs": len(self.negation_pairs),
            "resamples": self.resamples,
        }
        if self.terms:
            intervals |= self._score_terms(encode_terms, metrics, details)
        if self.negation_pairs:
            intervals |= self._score_negations(encode_texts, metrics, details)
        if self.classes and image_embeds is not None:
            self._score_images(image_embeds, encode_texts, metrics, details)
        records = {name: Metric.of(name, value, intervals.get(name)) for name, value in metrics.items()}
        return EvaluationResult(records, {"terminology": details})

    def _score_terms(
        self, encode_texts: Callable, metrics: dict[str, float], details: dict[str, Any]
    ) -> dict[str, Interval]:
        embeds = _unit_rows(encode_texts, self.terms)
        similarities = (embeds @ embeds.T).fill_diagonal_(-torch.inf)
        asked = self.same_meaning.any(dim=1).nonzero().flatten()
        sums = self._term_sums(similarities, asked)
        metrics |= {name: value for (name, _), value in sums.values.items()}
        # Terms of one meaning go together; the first of them stands for it.
        meaning = [min([row, *self.same_meaning[row].nonzero().flatten().tolist()]) for row in asked.tolist()]
        intervals = intervals_of(sums, meaning, len(meaning), self.resamples)
        details["spelling"] = self._by_spelling
        mates = self.same_meaning[asked].sum(dim=1).double()
        details |= {"n_asked": len(asked), "chance_Hits@1": float((mates / (len(self.terms) - 1)).mean())}
        ranks = ranks_of_best_hit(similarities[asked], self.same_meaning[asked])
        found = similarities.argmax(dim=1)
        missed = sorted(
            ((int(rank), int(row)) for rank, row in zip(ranks, asked, strict=True) if rank > 1),
            key=lambda item: (-item[0], item[1]),
        )
        details["missed"] = [
            {
                "term": self.terms[row],
                "nearest": self.terms[int(found[row])],
                "meant": [self.terms[mate] for mate in self.same_meaning[row].nonzero().flatten().tolist()],
                "rank": rank,
            }
            for rank, row in missed[:_LISTED]
        ]
        return intervals

    @cached_property
    def _by_spelling(self) -> dict[str, float]:
        """What any reader of letters would score: "oedema" and "edema" need no knowledge of medicine."""
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(self.terms)
        similarities = torch.from_numpy((letters @ letters.T).toarray()).fill_diagonal_(-torch.inf)
        asked = self.same_meaning.any(dim=1).nonzero().flatten()
        return {name: value for (name, _), value in self._term_sums(similarities, asked).values.items()}

    def _term_sums(self, similarities: Tensor, asked: Tensor) -> Sums:
        ranks = ranks_of_best_hit(similarities[asked], self.same_meaning[asked]).numpy()
        found = {
            "term_Hits@1": mean_of(ranks <= 1),
            "term_Hits@5": mean_of(ranks <= 5),
            "term_MRR": mean_of(1 / ranks),
        }
        for kind in ("synonym", "abbreviation"):
            of_kind = [kind in self._kinds[row] for row in asked.tolist()]
            if any(of_kind):
                found[f"{kind}_Hits@1"] = mean_of(ranks <= 1, of_kind)
        return Sums.ratios(found)

    def _score_negations(
        self, encode_texts: Callable, metrics: dict[str, float], details: dict[str, Any]
    ) -> dict[str, Interval]:
        rows: list[dict[str, Any]] = []
        for (statement, negation), paraphrases in zip(self.negation_pairs, self._paraphrases, strict=True):
            embeds = _unit_rows(encode_texts, [statement, negation, *paraphrases])
            negated, *kept = (embeds[1:] @ embeds[0]).tolist()
            rows.append(
                {
                    "statement": statement,
                    "negation": negation,
                    "similarity_negated": negated,
                    "similarity_paraphrased": sum(kept) / len(kept),
                    "accuracy": sum(value > negated for value in kept) / len(kept),
                }
            )
        ratios = {
            "negation_accuracy": mean_of([row["accuracy"] for row in rows]),
            "negation_drop": mean_of([row["similarity_paraphrased"] - row["similarity_negated"] for row in rows]),
        }
        sums = Sums.ratios(ratios)
        metrics |= {name: value for (name, _), value in sums.values.items()}
        details["negations"] = rows
        return intervals_of(sums, None, len(rows), self.resamples)

    def _score_images(
        self, image_embeds: Tensor, encode_texts: Callable, metrics: dict[str, float], details: dict[str, Any]
    ) -> None:
        image_embeds = rows_for(image_embeds, len(self.paths), "images")
        _require_finite(image_embeds, "images")
        rows = []
        for label in self.classes:
            present, absent = (
                F.normalize(_unit_rows(encode_texts, texts).mean(dim=0), dim=0) for texts in self._claims[label]
            )
            difference = (image_embeds @ (present - absent)).double().numpy()
            shown = np.array([own == label for own in self._labels])
            # A tie is neither: it is wrong for both.
            right = (float((difference[shown] > 0).mean()) + float((difference[~shown] < 0).mean())) / 2
            rows.append(
                {
                    "class": label,
                    "accuracy": right,
                    "auroc": float(roc_auc_score(shown, difference)),
                    "affirmed": float((difference > 0).mean()),
                    "n": int(shown.sum()),
                }
            )
        metrics["image_negation_accuracy"] = float(np.mean([row["accuracy"] for row in rows]))
        metrics["image_negation_auroc"] = float(np.mean([row["auroc"] for row in rows]))
        details["image_negations"] = rows


@EVALUATORS.register("terminology")
def _from_recipe(context: EvaluationContext) -> TerminologyEvaluator | None:
    """Where the domain has a glossary whose terms the captions use, unless ``terminology`` is false or true;
    ``ConfigurationError`` where it is true and there is no glossary."""
    resolved, asked = context.resolved, context.resolved.evaluation.terminology
    if asked is False or context.session is None:
        return None
    glossary = resolved.domain.texts.load()
    if glossary is None:
        if asked:
            raise ConfigurationError(
                f"terminology=true reads a glossary, and the domain {resolved.data.domain!r} has none: name one in the "
                "domain's texts.glossary"
            )
        return None
    if not (glossary.synonyms or glossary.abbreviations or glossary.negation_pairs):
        return None
    primary = resolved.evaluation.primary_metric
    wanted = asked or context.named or (primary is not None and METRICS[primary].section == "terminology")
    if not wanted and not uses_terms(glossary, [pair.caption for pair in context.pairs]):
        return None
    prompts, engine = resolved.domain.prompts, context.session.engine()
    engine.text_transform = plain_text
    return TerminologyEvaluator(
        glossary,
        context.pairs,
        prompts.presence_templates or PRESENCE_TEMPLATES,
        {pair.label: prompts.names_of(pair.label) for pair in context.pairs if pair.label is not None},
        engine.encode_texts,
        context.resamples,
    )


def uses_terms(glossary: Glossary, captions: Sequence[str], least: int = 3) -> bool:
    """Whether captions speak the language of a glossary: of captions that do not, its figures say nothing.

    Args:
        glossary: The domain's.
        captions: The captions.
        least: Different terms that have to occur: one or two ("with") occur anywhere.

    Returns:
        Whether as many occur as whole words, in any case.
    """
    text = "\n".join(dict.fromkeys(captions)).casefold()
    terms = (term.casefold() for term in _vocabulary(glossary)[0])
    found = (term for term in terms if re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text))
    return len(list(islice(found, least))) == least


def _vocabulary(glossary: Glossary) -> tuple[list[str], Bool[Tensor, "terms terms"], list[set[str]]]:
    """The terms; whether two of them mean the same (never a term and itself); which kinds each one is.

    Two terms mean the same within a synonym group, and an abbreviation means its expansion. Chains hold ("MI" is
    "myocardial infarction" is "heart attack"), but not through an abbreviation of several senses.
    """
    terms: dict[str, str] = {}
    kinds: dict[str, set[str]] = {}
    alike: list[tuple[str, str]] = []

    def add(term: str, kind: str) -> str:
        key = " ".join(term.split()).casefold()
        terms.setdefault(key, term)
        kinds.setdefault(key, set()).add(kind)
        return key

    for group in glossary.synonyms:
        first, *rest = [add(term, "synonym") for term in group]
        alike += [(first, key) for key in rest]
    ambiguous: list[tuple[str, list[str]]] = []
    for short, senses in glossary.abbreviations.items():
        key = add(short, "abbreviation")
        expansions = [add(glossary.expansion_of(sense), "expansion") for sense in senses]
        if len(senses) == 1:
            alike.append((key, expansions[0]))
        else:
            ambiguous.append((key, expansions))
    index_of = {key: row for row, key in enumerate(terms)}
    edges = np.array([(index_of[one], index_of[other]) for one, other in alike], dtype=int).reshape(-1, 2).T
    links = coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(len(terms), len(terms)))
    meanings = torch.from_numpy(connected_components(links, directed=False)[1]) if terms else torch.empty(0)
    same = meanings[:, None] == meanings
    for key, expansions in ambiguous:
        for expansion in expansions:
            mates = meanings == meanings[index_of[expansion]]
            same[index_of[key], mates] = True
            same[mates, index_of[key]] = True
    same.fill_diagonal_(False)
    return list(terms.values()), same, list(kinds.values())


def _paraphrases(statement: str, synonyms: Iterable[Sequence[str]]) -> list[str]:
    """The statement in other frames, and with its terms replaced by their synonyms."""
    found = [frame.replace("{}", statement) for frame in PARAPHRASES]
    for group in synonyms:
        for term in group:
            pattern = re.compile(rf"(?<!\w){re.escape(term)}(?!\w)", re.IGNORECASE)
            if pattern.search(statement):
                found += [pattern.sub(lambda _, other=other: other, statement) for other in group if other != term]  # type: ignore[misc]
                break
    return list(dict.fromkeys(found))


def _claims(
    label: str, names: Sequence[str], templates: Sequence[tuple[str, str]], negation_pairs: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Texts that say a class is there, and texts that say it is not."""
    spoken = [name.replace("_", " ") for name in names]
    present = [template.replace("{}", name) for template, _ in templates for name in spoken]
    absent = [template.replace("{}", name) for _, template in templates for name in spoken]
    absent += [negation for statement, negation in negation_pairs if statement.casefold() == label.casefold()]
    return list(dict.fromkeys(present)), list(dict.fromkeys(absent))


def _unit_rows(encode_texts: Callable[[list[str]], Tensor], texts: list[str]) -> Float[Tensor, "texts dim"]:
    embeds = rows_for(encode_texts(texts), len(texts), "texts")
    _require_finite(embeds, "texts")
    return F.normalize(embeds, dim=-1)


def _require_finite(embeds: Tensor, what: str) -> None:
    if not torch.isfinite(embeds).all():
        raise ShapeError(f"The embeddings of the {what} contain NaN or infinity: the model has diverged")
