"""What mkdocs.yml adds to docs/: root documents as pages, links to files outside of docs/, and generated reference."""

import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
}
_CODE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?P<begin>!?\[(?P<text>[^\]]*)\])\((?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the root documents to the pages."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's text with links as the site needs them and the generated parts filled in."""
    uri = page.file.src_uri
    originals = {page: name for name, page in ROOT_PAGES.items()}
    folder = str(PurePosixPath(originals.get(uri, f"docs/{uri}")).parent)
    here = str(PurePosixPath(uri).parent)
    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: _link(found, folder, here), part) for part in parts[::2]]
    text = "".join(parts)
    for marker, generate in {"<!-- fields -->": _fields, "<!-- verbs -->": _verbs}.items():
        text = text.replace(marker, generate()) if marker in text else text
    return text


def _link(found: re.Match[str], folder: str, here: str) -> str:
    """Return a link of a document in `folder` of the repository for its page, which lies in `here` of the site.

    The site holds the pages only: of a link to source code remains its path.
    """
    if ":" in found["path"]:
        return found[0]
    target = os.path.normpath(os.path.join(folder, found["path"]))  # noqa: PTH118 - the paths do not exist here
    if target in ROOT_PAGES:
        path = ROOT_PAGES[target]
    elif target.startswith("docs/") and (ROOT / target).is_file():
        path = target.removeprefix("docs/")
    elif (ROOT / target).exists():
        return f"`{target}`" if found["text"].strip("`") in target else f"{found['text']} (`{target}`)"
    else:
        return found[0]  # mkdocs names it as broken
    return f"{found['begin']}({os.path.relpath(path, here)}{found['anchor'] or ''})"


def _fields() -> str:
    """Return every field of a configuration, from the docstrings of its dataclasses."""
    from gkt_mpi.usage import groups

    lines = []
    for group in groups():
        lines += [
            f"## {group.name}",
            "",
            f"{group.title}.",
            "",
            "| field | meaning | values | default |",
            "|---|---|---|---|",
        ]
        for entry in group.entries:
            cells = (f"`{entry.name}`", entry.text, entry.values, f"`{entry.default}`")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _verbs() -> str:
    """Return the help of every verb of gkt-mpi."""
    from gkt_mpi.cli import VERBS

    os.environ["COLUMNS"] = "110"  # argparse's width, whatever the terminal's
    lines = []
    for name, verb in VERBS.items():
        with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
            verb.load(name)(["--help"])
        lines += [f"## {name}", "", "```text", shown.getvalue().rstrip(), "```", ""]
    return "\n".join(lines)
