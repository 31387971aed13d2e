"""The rules of axe-core, which is in an environment of its own: `bash .ci/tools axe`."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
AXE = next(ROOT.glob(".axe/lib/python3*/site-packages/axe_playwright_python/axe.min.js"), None)
WHY_NO_AXE = "axe-core is not there: bash .ci/tools axe"
CHECK = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations
  .flatMap(({id, impact, nodes}) => nodes.map(({target}) => `${impact} ${id} ${target}`)))"""


def find_faults(page):
    """Find what axe-core holds against a page, as ``impact rule element``."""
    page.run(AXE.read_text("utf-8"))
    return page.run(CHECK, seconds=300)
