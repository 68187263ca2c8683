"""What a result rests on, as digests: of code, of configurations, of files. Time stamps and places decide nothing.

Code counts by what it decides: `code_digest` covers a program and the modules of ours that it imports, directly or
not, without comments, docstrings, types and messages, and without the modules of NOT_DECIDING. The digest stands in the
stage's config.yaml, for Snakemake and for the resume of half-finished runs alike.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from rllr.files import sha256

PROGRAMS = Path(__file__).resolve().parents[1]

# How a result is told, kept, shared out over processes or fitted into memory, not what it is. A stage's values stand in
# its config.yaml, so that `config` and `methods`, which make it, do not count again.
NOT_DECIDING = {
    "rllr.cli", "rllr.files", "rllr.store", "rllr.provenance", "rllr.checkpoints", "rllr.ranks", "rllr.tracking",
    "rllr.gpus", "rllr.version", "rllr.sharing", "rllr.config", "rllr.methods", "rllr.lm.budget", "rllr.lm.fitting",
}  # fmt: skip
MESSAGES = {"log", "warn", "print", "set_description", "set_postfix", "error"}
STAMPS = "rllr.version"  # its import and its function `stamp`, which says what code wrote a file, count for nothing
LABELS = {"desc", "help", "description"}  # keyword arguments that are shown and nothing else

FIELD = 2  # marks a field of a class; ast has 1 for a plain name


class _Deciding(ast.NodeTransformer):
    """Takes out of a syntax tree what only people read."""

    def _body(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:]
        return node

    visit_Module = _body

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                field.simple = FIELD
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)  # without its type

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign | ast.Assign | None:
        self.generic_visit(node)
        if node.simple == FIELD:
            return node  # by its type a value of a config is read
        return ast.Assign([node.target], node.value, lineno=node.lineno) if node.value else None

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        call = node.exc
        return ast.Raise(exc=call.func if isinstance(call, ast.Call) else call, cause=None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == STAMPS else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value
        if isinstance(call, ast.Call):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            if name == "stamp":
                return None
            if name in MESSAGES:
                return ast.Pass()
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        node.keywords = [k for k in node.keywords if k.arg not in LABELS]
        return node


@functools.cache
def code_digest(program: str) -> str:
    """Digest of what decides the results of a program of workflow/scripts, e.g. `ppo.py`."""
    digest = hashlib.sha256()
    for path in deciding(program):
        digest.update(f"{path.relative_to(PROGRAMS)}:{_read(path)[0]}\n".encode())
    return digest.hexdigest()[:16]


def deciding(program: str) -> list[Path]:
    """The program and the modules of ours that it imports, wherever in their text, without those of NOT_DECIDING."""
    start = PROGRAMS / program
    found, queue = {start}, [start]
    while queue:
        for path in _read(queue.pop())[1]:
            if path not in found:
                found.add(path)
                queue.append(path)
    return sorted(found)


@functools.cache
def _read(path: Path) -> tuple[str, list[Path]]:
    """The digest of what decides in a file, and the modules of ours that it imports for it."""
    tree = _Deciding().visit(ast.parse(path.read_text(encoding="utf-8")))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {name for alias in node.names for name in (node.module or "", f"{node.module}.{alias.name}")}
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in used]  # not those of types
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and not node.names)]
    stems = [PROGRAMS / name.replace(".", "/") for name in names - NOT_DECIDING if name.partition(".")[0] == "rllr"]
    files = {file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()}
    text = ast.unparse(tree)  # more alike over Python versions than a dump
    return hashlib.sha256(text.encode()).hexdigest(), sorted(files)


def text_digest(text: str) -> str:
    """16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digests(paths: Iterable[Path], remembered: Path) -> dict[Path, str]:
    """SHA-256 of files, read again only where size, inode or times have changed since `remembered` was written.

    The time of the last change of the inode (ctime) is among them, which no copying tool sets back.
    """
    known = _remembered(remembered)
    before, found = len(known), {}
    for path in paths:
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        known[key] = found[path] = known.get(key) or sha256(path)
    if len(known) > before:
        try:  # a help for the next time alone: a read-only folder does without
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(json.dumps(known))
        except OSError:
            pass
    return found


@functools.cache
def _remembered(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
