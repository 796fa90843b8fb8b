"""The login page as HTML: ours alone, without scripts, images or anything from elsewhere. Pure.

It works without a pointer and by a screen reader: labels, one heading, errors announced, focus visible, contrast above
7:1, and no time limit shorter than fifteen minutes.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final
from urllib.parse import urlsplit

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:1rem/1.5 system-ui,sans-serif;margin:0;background:#f4f6f8;color:#14202b}
main{max-width:24rem;margin:8vh auto;padding:2rem;background:#fff;border:1px solid #c4ccd4;border-radius:.5rem}
h1{font-size:1.25rem;margin:0 0 1rem}
label{display:block;margin:1rem 0 .25rem;font-weight:600}
input{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;border:1px solid #56636f;border-radius:.25rem}
input:focus-visible,button:focus-visible{outline:3px solid #0b57a4;outline-offset:2px}
button{font:inherit;font-weight:600;width:100%;margin-top:1.5rem;padding:.6rem;border:0;border-radius:.25rem;
background:#0b4a8a;color:#fff;cursor:pointer}
.error{margin:0 0 1rem;padding:.75rem;border-left:4px solid #9b1c1c;background:#fdeaea;color:#6b1010}
.hint{margin:.25rem 0 0;font-size:.875rem;color:#3c4954}
@media (prefers-color-scheme:dark){body{background:#10161c;color:#eef2f6}main{background:#1a232c;border-color:#56636f}
input{background:#10161c;color:#eef2f6;border-color:#a9b4bf}.hint{color:#c4ccd4}}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

WRONG: Final = "The login, the password or the one-time code is not right. Please try again."
LIMITED: Final = "There were too many attempts. Please wait a few minutes, then try again."
BUSY: Final = "Logging in is not possible at this moment. Please try again in a few seconds."
STALE: Final = "This page is out of date. Please go back to the application and start again."
BAD_LINK: Final = "The link that led here is not right, so nothing was done. Please tell the maker of the application."


def login_page(title: str, action: str, sealed: str, error: str = "") -> bytes:
    """The form. Shapes: `title` is the app's, `sealed` what the form must bring back."""
    told = f'<p class="error" role="alert" id="error">{escape(error)}</p>' if error else ""
    described = ' aria-describedby="error"' if error else ""
    return _page(
        f"Log in to {title}",
        f"""<h1>Log in to {escape(title)}</h1>
{told}<form method="post" action="{escape(action)}" autocomplete="on">
<input type="hidden" name="request" value="{escape(sealed)}">
<label for="username">Login</label>
<input id="username" name="username" type="text" autocomplete="username" autocapitalize="none" spellcheck="false" \
maxlength="128" required autofocus{described}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="1024" required>
<label for="totp">One-time code</label>
<input id="totp" name="totp" type="text" inputmode="numeric" autocomplete="one-time-code" pattern="[0-9]{{6}}" \
maxlength="6" aria-describedby="totp-hint">
<p class="hint" id="totp-hint">Six digits of your authenticator app, if you use one.</p>
<button type="submit">Log in</button>
</form>""",
    )


def message_page(message: str) -> bytes:
    """A page that only says something."""
    return _page("Log in", f'<h1>Log in</h1>\n<p class="error" role="alert">{escape(message)}</p>')


def _page(title: str, main: str) -> bytes:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{main}
</main>
</body>
</html>
""".encode()


def fields(redirect_uri: str = "") -> tuple[tuple[str, str], ...]:
    """Header fields of a page. Shapes: `redirect_uri` is where its form may lead in the end."""
    # NOTE: browsers hold form-action against the redirect that answers the form, too.
    form_action = " ".join(filter(None, ("'self'", _source(redirect_uri)))) if redirect_uri else "'none'"
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action {form_action}; frame-ancestors 'none'; "
        "base-uri 'none'"
    )
    return (
        ("Content-Security-Policy", policy),
        ("Cache-Control", "no-store"),
        ("X-Frame-Options", "DENY"),
        ("X-Content-Type-Options", "nosniff"),
        # NOTE: not no-referrer: with that, browsers send `Origin: null` along with the form.
        ("Referrer-Policy", "same-origin"),
    )


def _source(uri: str) -> str:
    """A URI as a source of a content security policy: its origin, or its scheme alone."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"
