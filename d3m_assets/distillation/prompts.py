"""Prompts of a class, and the placeholder tokens that stand for its learned vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from d3m_assets.errors import StageError

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_PROMPTS = 26**2
"""Of a class: two letters tell them apart."""


def placeholder_token(class_id: int, prompt: int) -> str:
    """Token of one learned prompt, such as ``<d3m-0003ab>``.

    Lower-case, delimited, of fixed width and not ending in ``_digit``: transformers 5 otherwise merges, truncates or
    fails to expand tokens without an error.

    Args:
        class_id: The class.
        prompt: Which of its prompts, 0 to 675.

    Raises:
        StageError: ``prompt`` is beyond 675.
    """
    if not 0 <= prompt < MOST_PROMPTS:
        raise StageError(f"prompt {prompt} of class {class_id}: a class has at most {MOST_PROMPTS} prompts")
    return f"<d3m-{class_id:04d}{_LETTERS[prompt // 26]}{_LETTERS[prompt % 26]}>"


@dataclass(frozen=True)
class ClassPrompts:
    """Names and templates of a class's prompts.

    Attributes:
        class_id: The class.
        class_key: Its partition key.
        class_name: Its name in the dataset.
        display_name: Its name in prompts: underscores and doubled spaces become one space.
        initializer: Words whose embeddings the inversion starts from, unless it starts from images.
        templates: Prompts with ``{}`` for the class.
        keep_class_name: Whether the name stands in the prompt behind the learned vectors.
    """

    class_id: int
    class_key: str
    class_name: str
    display_name: str
    initializer: str
    templates: tuple[str, ...]
    keep_class_name: bool

    @classmethod
    def of(
        cls,
        class_id: int,
        class_key: str,
        class_name: str,
        *,
        templates: tuple[str, ...],
        initializer: str | None,
        keep_class_name: bool,
    ) -> ClassPrompts:
        """Prompts of a class under the settings; without ``initializer`` it is the class's name."""
        display = " ".join(class_name.replace("_", " ").split()) or class_name
        return cls(class_id, class_key, class_name, display, initializer or display, templates, keep_class_name)

    @property
    def has_initializer(self) -> bool:
        """Whether the initializer is another text than the class's own name."""
        return self.initializer != self.display_name

    def starts(self, vectors: int) -> list[str]:
        """The text that each of a prompt's vectors starts from.

        The words of an initializer are assigned to the vectors in turn: with more vectors than words they repeat, with
        fewer a vector gets several. The class's own name is not split: every vector starts from all of it.
        """
        words = self.initializer.split()
        if not self.has_initializer or len(words) < 2:
            return [self.initializer] * vectors
        return [" ".join(words[v::vectors]) if v < len(words) else words[v % len(words)] for v in range(vectors)]

    def by_name(self, template: int = 0) -> str:
        """The class-name prompt, without learned vectors."""
        return self.templates[template % len(self.templates)].format(self.display_name)

    def learned(self, prompt: int, template: int = 0) -> str:
        """The prompt with its placeholder token, which stands for all vectors of the prompt."""
        subject = placeholder_token(self.class_id, prompt)
        if self.keep_class_name:
            subject += f" {self.display_name}"
        return self.templates[template % len(self.templates)].format(subject)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClassPrompts:
        """Undo :meth:`to_json`."""
        return cls(**{**value, "templates": tuple(value["templates"])})
