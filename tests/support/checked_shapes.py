"""Shapes in the signatures of a package are checked at run time, by `jaxtyped` and beartype.

`jaxtyping.install_import_hook` wraps every function, also those without a shape, whose types mypy knows, and those
inside of functions, anew for each call. That takes most of the time of a test with small tensors. Here only functions,
methods and dataclasses with a shape in their annotations are wrapped, once, and arguments are checked once: `jaxtyped`
around a function checks them in front of the call, and again behind it for its message.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from inspect import isgeneratorfunction
from types import CodeType, ModuleType
from typing import Any, TypeVar, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

_T = TypeVar("_T")
_NAME = "__checked_shapes__"
_CHECKS = 3  # calls of a function that are checked in one test; those of loops are alike
_TYPED = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def check_shapes(package: str) -> None:
    """Check the shapes in all modules of a package that are imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


class _Test:
    """Counts the tests, so that each begins with all checks."""

    number = 0


def begin_test() -> None:
    """Check the first calls of each function again."""
    _Test.number += 1


def checked(thing: _T) -> _T:
    """Return a function or class that checks its arguments and results, if a shape is among its annotations."""
    names = vars(sys.modules[thing.__module__])
    own = thing.__dict__ if isinstance(thing, type) else {"__annotations__": thing.__annotations__}
    if not any(_has_shape(note, names) for note in own.get("__annotations__", {}).values()):
        return thing
    if isinstance(thing, type) or isgeneratorfunction(thing) or not _is_known(thing):
        return jaxtyped(thing, typechecker=beartype)
    function: Any = _TYPED(thing)
    test = calls = 0

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal test, calls
        __tracebackhide__ = True
        if test != _Test.number:
            test, calls = _Test.number, 0
        calls += 1
        if calls > _CHECKS:
            return thing(*args, **kwargs)  # type: ignore[operator]
        with jaxtyped("context"):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _is_known(function: Any) -> bool:
    """Whether all names in the annotations exist already, which beartype insists on and `jaxtyped` does not."""
    try:
        get_type_hints(function)
    except (NameError, AttributeError):
        return False
    return True


def _has_shape(note: Any, names: dict[str, Any]) -> bool:
    """Whether an annotation, as text or evaluated, is or holds a type of jaxtyping, maybe under another name."""
    if not isinstance(note, str):
        return "jaxtyping" in repr(note)
    return any("jaxtyping" in repr(names[name]) for name in re.findall(r"\w+", note) if name in names)


class _Decorated(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(ast.Name(_NAME, ast.Load()))
        return node  # functions inside of it stay as they are

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.Name(_NAME, ast.Load()))  # outside of `dataclass`
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile each time, as what lies in a cache is not decorated."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data: bytes, path: str, **_: Any) -> CodeType:  # type: ignore[override]
        tree = _Decorated().visit(ast.parse(data, path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_NAME] = checked
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found
