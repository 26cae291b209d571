"""Parse the requested targets: the predicted class, the class of the label, a given class, or the top K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradcam_kit.errors import OptionError, UnknownNameError, did_you_mean
from gradcam_kit.targets.names import class_index

_TARGETS = "'predicted', 'label', a class index, 'top:K' with K > 0, a class name, or 'class:NAME'"

TargetKind = Literal["predicted", "label", "class", "top", "name"]


@dataclass(frozen=True)
class Targets:
    """The classes to explain for each picture.

    `number` is the class index if `kind` is "class", and K if `kind` is "top". `name` is a class name, which
    `of_names` replaces by the class index.
    """

    kind: TargetKind
    number: int = 0
    name: str = ""

    @property
    def policy(self) -> str:
        """How the classes are chosen, in words that are stored with the settings of metrics."""
        return {"class": "given", "name": "given", "top": f"top {self.number}"}.get(self.kind, self.kind)

    @classmethod
    def parse(cls, text: str) -> Targets:
        """Parse `predicted`, `label`, a class index, `top:K` or a class name; `class:NAME` is always a class name.

        Raises:
            OptionError: the text has none of these forms.
        """
        match text.partition(":"):
            case ("predicted" | "label") as kind, "", "":
                return cls(kind)
            case "top", ":", number if number.isdecimal() and int(number) > 0:
                return cls("top", int(number))
            case "class", ":", name if name.strip():
                return cls("name", name=name)
            case number, "", "" if number.removeprefix("-").isdecimal():
                return cls("class", int(number), text)  # negative numbers are refused once the model is known
            case word, _, _ if word.strip() and word != "top":
                return cls("name", name=text)
        raise OptionError(f"the targets are {text!r}; expected {_TARGETS}")

    def of_names(self, names: Sequence[str] | None) -> Targets:
        """Return the targets with the class index in place of a class name.

        Raises:
            UnknownNameError: the name belongs to no class, or to several classes.
            OptionError: the class names of the model are unknown, or a number is both an index and a class name.
        """
        if self.kind == "class" and names is not None and self.name in names and names.index(self.name) != self.number:
            other = f"{self.number}, {names[self.number]!r}," if 0 <= self.number < len(names) else str(self.number)
            raise OptionError(
                f"the targets {self.name} are ambiguous: the index of class {other} and the name of class "
                f"{names.index(self.name)}; write class:NAME with the name of the class to explain"
            )
        if self.kind != "name":
            return self
        if names is None:
            hint = did_you_mean(self.name, ["predicted", "label", "top:5"])
            raise OptionError(
                f"the targets are {self.name!r}; expected {_TARGETS}; the model has no class names, so give them "
                f"with --class-names to name a class{hint}"
            )
        try:
            return Targets("class", class_index(self.name, names))
        except UnknownNameError as error:
            hint = did_you_mean(self.name, ["predicted", "label", "top:5"])
            raise UnknownNameError(f"the targets are {self.name!r}; expected {_TARGETS}; {error}{hint}") from None
