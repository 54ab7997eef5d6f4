"""Which samples are worth training on: the filters of captions and pictures.

Contract: a rule is a named predicate, true for a sample to drop; its docstring is the reason that the report gives,
its threshold a field of `FilterConfig`. A sample counts under the first rule that it breaks. The rules are those of
Sharma et al. 2018 (Conceptual Captions, section 3) that DALL·E used (Ramesh et al. 2021, appendix C: captions that
are short, not English or mostly boilerplate; an aspect ratio outside [1/2, 2]), with milder thresholds where its
makers could choose among billions, and the removal of duplicates.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from dalle_mini.training.data.duplicates import Duplicates
from dalle_mini.training.data.rows import Sample, read_samples
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source
from dalle_mini.training.optional_packages import optional
from vqgan.files import write_json

FILTERED, REPORT = "filtered.parquet", "report.json"
ROW_GROUP = 64  # samples in memory before they are written
SHORT = 4  # words

# Scripts without spaces: two signs of Chinese or Japanese, four of Thai, Lao, Burmese or Khmer are about a word.
SIGNS = "\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LETTERS = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"
SPACED = rf"[^\W_{SIGNS}{LETTERS}]"
WORD = re.compile(rf"[{SIGNS}]{{1,2}}|[{LETTERS}]{{1,4}}|{SPACED}+(?:['’.-]{SPACED}+)*")
# What a whole-token address, tag or file name looks like.
NOISE = re.compile(
    r"https?://|www\.|[#@]\w|\S+\.(?:com|net|org|html?|jpe?g|png|gif|webp)\b|(?=\w*_)\w*\d", re.IGNORECASE
)
MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec|january|february|march|april|august|september"
MONTH += r"|october|november|december)\b\.?"
# A credit begins a caption and is of someone or some day: "a picture by Monet" and "photo by the sea" are of something.
BOILERPLATE = re.compile(
    rf"""\A\W*(?:
    (?:(?:photo(?:graph)?|picture|image)\s+)?
        (?:photographed|taken|uploaded|posted|published|created|updated)\s+(?:on|by|courtesy\s+of)
    | (?:photo(?:graph)?|picture|image)\s+(?:by|courtesy\s+of)
    )\b(?!\s+(?:an?|the|my|his|her|our|their)\b)
    | \b(?:
    (?:stock|royalty[\s-]free|file)\s+(?:photo(?:graph|graphy)?|image|picture|illustration|vector|footage)s?
    | (?:image|photo|picture|figure|fig\.?|page|slide|img|dsc)\s*\d+(?:\s+of\s+\d+)?
    | (?:no\s+)?(?:image|photo|picture|caption|description)\s+(?:not\s+)?available | image\s+may\s+contain
    | (?:getty|shutterstock|istock(?:photo)?|alamy|dreamstime|fotolia|depositphotos)(?:\s+images)?
    | all\s+rights\s+reserved | copyright | click\s+(?:here|to\s+\w+) | view\s+(?:larger|full\s+size) | untitled
    | \d{{4}}[-/.]\d\d?[-/.]\d\d? | \d\d?[-/.]\d\d?[-/.]\d\d(?:\d\d)? | \d\d?:\d\d(?::\d\d)?(?:\s*[ap]\.?m\b)?
    | \d\d?(?:st|nd|rd|th)?\s+(?:of\s+)?{MONTH},?\s+\d{{4}} | {MONTH}\s+\d\d?(?:st|nd|rd|th)?,?\s+\d{{4}}
    | {MONTH},?\s+\d{{4}} | \d{{4}}
    )""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Thresholds. Shares are of a caption's words. An empty name turns its optional rule off."""

    min_words: int = 2
    max_words: int = 100  # a paragraph; the published models read 64 tokens
    language: str = "en"
    language_odds: float = 50.0
    # Of captions of up to SHORT words, which are little to tell a language from: "a llama" looks 1140 times as Quechua.
    short_language_odds: float = 2000.0
    max_boilerplate: float = 0.5
    max_noise: float = 0.3
    max_repetition: float = 0.5
    max_capitals: float = 0.7
    max_aspect_ratio: float = 2.0
    min_side: int = 64  # pixels; better the resolution of the VQGAN
    max_thumbnail_difference: int = 16  # of 255; strong compression of a small picture changes so much
    spacy_model: str = ""  # e.g. en_core_web_sm
    clip: str = ""  # a folder, or open_clip's MODEL/TAG
    min_clip_score: float = 0.28  # for ViT-B/32, as LAION-5B has it

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            default: Any = field.default
            value, kind = getattr(self, field.name), type(default)
            if kind is str:
                if not isinstance(value, str):
                    raise ValueError(f"{field.name} must be text, got {value!r}")
                continue
            low, high = RANGES.get(field.name, (0, 1))
            if not isinstance(value, (int, kind)) or isinstance(value, bool) or not low <= value <= high:
                number = "whole number" if kind is int else "number"
                raise ValueError(f"{field.name} must be a {number} from {low} to {high}, got {value!r}")

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Self:
        """From texts like "min_side=256"."""
        kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in kinds:
                raise ValueError(f"set must be NAME=VALUE with a name of {', '.join(kinds)}, got {setting!r}")
            try:
                values[name] = kinds[name](text)
            except ValueError:
                values[name] = text  # __post_init__ says what is wrong with it
        return cls(**values)


RANGES = {
    "min_words": (1, 1000),
    "max_words": (1, 1000),
    "language_odds": (1, 1e9),
    "short_language_odds": (1, 1e9),
    "max_aspect_ratio": (1, 1000),
    "min_side": (1, 10_000),
    "max_thumbnail_difference": (0, 255),
    "min_clip_score": (-1, 1),
}


def words_of(caption: str) -> list[str]:
    return WORD.findall(caption)


def too_few_words(sample: Sample, config: FilterConfig) -> bool:
    """A caption of fewer than min_words words says too little about its picture."""
    return len(words_of(sample.caption)) < config.min_words


def too_many_words(sample: Sample, config: FilterConfig) -> bool:
    """A text of more than max_words words is no caption."""
    return len(words_of(sample.caption)) > config.max_words


def other_language(sample: Sample, config: FilterConfig) -> bool:
    """Some other language is more than language_odds times as likely (short_language_odds: for up to 4 words)."""
    chances = dict(_identifier().rank(sample.caption))
    if config.language not in chances:
        raise ValueError(f"language must be one of {', '.join(sorted(chances))}, got {config.language!r}")
    odds = config.language_odds
    if len(words_of(sample.caption)) <= SHORT:
        odds = max(odds, config.short_language_odds)
    return max(chances.values()) > odds * chances[config.language]


def mostly_boilerplate(sample: Sample, config: FilterConfig) -> bool:
    """More than max_boilerplate of the words are dates, credits and the like, as in "photographed on 3 May 2014"."""
    words = len(words_of(sample.caption))
    return words - len(words_of(BOILERPLATE.sub(" ", sample.caption))) > config.max_boilerplate * words


def mostly_noise(sample: Sample, config: FilterConfig) -> bool:
    """More than max_noise of the words are addresses, hashtags, mentions or file names."""
    tokens = sample.caption.split()
    return sum(bool(NOISE.match(token)) for token in tokens) > config.max_noise * len(tokens)


def repetitive(sample: Sample, config: FilterConfig) -> bool:
    """More than max_repetition of the words have been said before in the same caption."""
    words = words_of(sample.caption.lower())
    return len(words) - len(set(words)) > config.max_repetition * len(words)


def mostly_capitals(sample: Sample, config: FilterConfig) -> bool:
    """More than max_capitals of the words are ALL CAPITALS, as headlines and advertisements are."""
    words = words_of(sample.caption)
    return sum(len(word) > 1 and word.isupper() for word in words) > config.max_capitals * len(words)


def no_sentence(sample: Sample, config: FilterConfig) -> bool:
    """There is no determiner, no noun or no preposition (only with a spacy_model)."""
    if not config.spacy_model:
        return False
    kinds = {token.pos_ for token in _parser(config.spacy_model)(sample.caption)}
    return not ("DET" in kinds and "ADP" in kinds and kinds & {"NOUN", "PROPN"})


def too_elongated(sample: Sample, config: FilterConfig) -> bool:
    """One side is more than max_aspect_ratio times the other: the square that is trained on would lose too much."""
    return max(sample.image.size) > config.max_aspect_ratio * min(sample.image.size)


def too_small(sample: Sample, config: FilterConfig) -> bool:
    """The shorter side has fewer than min_side pixels: enlarged, it would teach blur."""
    return min(sample.image.size) < config.min_side


def unlike_its_caption(sample: Sample, config: FilterConfig) -> bool:
    """CLIP scores the picture against its caption below min_clip_score (only with a clip)."""
    if not config.clip:
        return False
    return bool(_reranker(config.clip).score(sample.caption, np.asarray(sample.image)[None])[0] < config.min_clip_score)


# The quick ones first.
RULES: tuple[Callable[[Sample, FilterConfig], bool], ...] = (
    too_few_words,
    too_many_words,
    mostly_boilerplate,
    mostly_noise,
    repetitive,
    mostly_capitals,
    too_elongated,
    too_small,
    other_language,
    no_sentence,
    unlike_its_caption,
)


@cache
def _identifier() -> Any:
    langid = optional("py3langid.langid", "to tell languages")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)  # inside the package


@cache
def _parser(name: str) -> Any:
    spacy = optional("spacy", "for spacy_model")
    try:
        return spacy.load(name)
    except OSError as error:
        raise ValueError(f"spacy_model must be an installed model, got {name!r}: {error}") from None


@cache
def _reranker(location: str) -> Any:
    from dalle_mini.loading import load_reranker  # imports JAX

    return load_reranker(location, setting="clip")


def _keep(samples: Iterable[Sample], config: FilterConfig, report: Report) -> Iterator[Sample]:
    duplicates = Duplicates(config.max_thumbnail_difference)
    for sample in tqdm(samples, unit="picture", mininterval=5):
        reason = next((rule.__name__ for rule in RULES if rule(sample, config)), "") or duplicates.reason(sample)
        if reason:
            report.skip(reason, sample.key)
        else:
            yield sample


def filter_samples(source: str | Path, out: Path, config: FilterConfig) -> Report:
    """Write the samples of `source` that break no rule to `out`, as a source of its own, and `report.json`.

    The table holds the pictures as they were found. Both files appear whole or not at all.
    """
    pa, pq = optional("pyarrow", "to write tables"), optional("pyarrow.parquet", "to write tables")
    report = Report()
    kept = _keep(read_samples(open_source(source), report), config, report)
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # as Hugging Face's tables have it
    schema = pa.schema({"key": pa.string(), "caption": pa.string(), "image": picture})
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{FILTERED}.partial"
    with pq.ParquetWriter(partial, schema) as table:
        while samples := list(islice(kept, ROW_GROUP)):
            rows = [{"key": s.key, "caption": s.caption, "image": {"bytes": s.file, "path": s.key}} for s in samples]
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
    partial.replace(out / FILTERED)
    reasons = {rule.__name__: rule.__doc__ for rule in RULES} | Duplicates.REASONS
    told = {**report.to_dict(), "source": str(source), "config": dataclasses.asdict(config), "rules": reasons}
    write_json(out / REPORT, told)
    return report
