"""Licences as a hub's model card takes them: its own short list of names, or `other` with a name beside it."""

from __future__ import annotations

import re

from rayalign.errors import UserError

# SPDX identifiers that the hub knows, which it writes in lower case.
KNOWN = frozenset(
    """
    apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 isc zlib unlicense wtfpl artistic-2.0 ecl-2.0
    afl-3.0 ms-pl ncsa osl-3.0 postgresql ofl-1.1 lppl-1.3c etalab-2.0 mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0
    gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 gfdl cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 odbl odc-by pddl openrail creativeml-openrail-m
    bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
    """.split()
)
SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def licence_fields(licence: str | None) -> dict[str, str]:
    """The card's fields for an SPDX identifier; `other` where none is stated. Raises UserError for what is no identifier."""
    if licence is None:
        return {"license": "other", "license_name": "not-stated"}
    if not SPDX.fullmatch(licence):
        raise UserError(f"--license {licence}: no SPDX identifier; give one such as Apache-2.0 (spdx.org/licenses)")
    known = licence.lower().removesuffix("-only").removesuffix("-or-later")
    if known in KNOWN:
        return {"license": known}
    return {"license": "other", "license_name": licence.lower()}
