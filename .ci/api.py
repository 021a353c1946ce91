"""Writes the API reference by pdoc, from the public docstrings: `python .ci/api.py FOLDER`.

A warning is an error. So is a docstring that does not come out whole, since pdoc takes docstrings
for Markdown: an equation's <u, z> would be a tag.
"""

import re
import sys
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render

import noprop
import noprop.loggers
import noprop_kernels
import noprop_kernels.tuning

MODULES = (noprop, noprop.loggers, noprop_kernels, noprop_kernels.tuning)


def complete() -> None:
    """Makes all public names visible to pdoc, which looks at what modules and classes hold."""
    noprop.__all__ = dir(noprop)  # with what needs an extra
    for name in noprop.__all__:  # imported on first use
        setattr(noprop, name, getattr(noprop, name))
    public = {*noprop.__all__, *noprop_kernels.__all__}
    for module in (noprop, noprop_kernels):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type):
                inherit(found, public)


def inherit(found: type, public: set[str]) -> None:
    """Adds what a class inherits from bases of ours that are not public themselves."""
    for base in found.__mro__[1:]:
        if base.__module__.startswith("noprop") and base.__name__ not in public:
            for name, member in vars(base).items():
                if not name.startswith("_") and getattr(member, "__doc__", None):
                    if name not in vars(found):
                        setattr(found, name, member)


def documented(parent: pdoc.doc.Namespace) -> Iterator[pdoc.doc.Doc]:
    """A module or class with all its public members."""
    yield parent
    members = parent.own_members if isinstance(parent, pdoc.doc.Class) else parent.members.values()
    for member in members:
        if isinstance(member, pdoc.doc.Class):
            yield from documented(member)
        elif not member.name.startswith("_") and not is_of_others(member):
            yield member


def is_of_others(member: pdoc.doc.Doc) -> bool:
    """Whether another package made it, as scikit-learn makes methods of its estimators."""
    return not (getattr(member.obj, "__module__", None) or "noprop").startswith("noprop")


class Text(HTMLParser):
    """The text of a page as a browser shows it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def letters(text: str) -> str:
    """A text without white space and code's marks, and with pdoc's name for "Args"."""
    return re.sub(r"[\s`]", "", text).replace("Args:", "Arguments:")


def check(folder: Path) -> None:
    """Ends with an error where a page lacks a part of a docstring."""
    lacking = []
    pages = [pdoc.doc.Module(module) for module in MODULES]
    pages += [item for page in pages for item in page.members.values() if item.kind == "module"]
    for page in pages:
        path = folder / (page.fullname.replace(".", "/") + ".html")
        shown = letters("".join(Text(path.read_text()).parts))
        for item in documented(page):
            for paragraph in item.docstring.split("\n\n"):
                if letters(paragraph) not in shown:
                    lacking.append(f"api: {item.fullname} does not come out whole:\n{paragraph}")
    if lacking:
        sys.exit("\n".join(lacking))


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    complete()
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*(module.__name__ for module in MODULES), output_directory=folder)
    check(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
