"""How to log in at the demo, printed as lines for the shell and an address for the browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

from gateway.auth import pkce
from gateway.demo.accounts import ACCOUNTS, CHILD, WITH_FACTOR, Logins

TERMINAL: Final = "demo-terminal"
WEB: Final = "patient-web"
BACK: Final = "http://localhost:8000/back"
VERIFIER: Final = "a-verifier-that-everybody-knows-is-for-a-demo-alone"


def print_logins(base: str, logins: Logins, write: Callable[[str], None]) -> None:
    """A login by password, with a second factor, by the login page, and the tokens that follow."""
    token = f"curl -s {base}/auth/v1/token"
    plain = [f"{login} ({role})" for login, (role, _, _) in ACCOUNTS.items() if login not in WITH_FACTOR]
    coded = [f"{login} ({role})" for login, (role, _, _) in ACCOUNTS.items() if login in WITH_FACTOR]
    write(f"\nLog in: {', '.join(plain)}; with a one-time code: {', '.join(coded)}")
    write(f"\n# By password, as a patient; every demo account's password is {logins.password}")
    write(f"{token} -d grant_type=password -d client_id={TERMINAL} -d username=anna -d password={logins.password}")
    write("\n# By password and one-time code, as an auditor; a code is for one use, the next comes within 30 s")
    write(
        f"{token} -d grant_type=password -d client_id={TERMINAL} -d username=audit -d password={logins.password} "
        "-d totp=$(.venv/bin/caregate demo code)"
    )
    write("\n# The next access token, once, with the refresh_token of an answer above")
    write(f"{token} -d grant_type=refresh_token -d client_id={TERMINAL} -d refresh_token=$REFRESH_TOKEN")
    write(f"\n# Anna acts for her child, {CHILD}, with the access_token of her answer")
    write(
        f"{token} -d grant_type=urn:ietf:params:oauth:grant-type:token-exchange -d client_id={TERMINAL} "
        f"-d subject_token=$ACCESS_TOKEN -d subject_token_type=urn:ietf:params:oauth:token-type:access_token "
        f"-d requested_subject={CHILD}"
    )
    write("\n# The login page, in a browser; nothing listens where it leads, the code stands in the address")
    write(authorize_url(base))
    write(
        f"{token} -d grant_type=authorization_code -d client_id={WEB} -d redirect_uri={BACK} "
        f"-d code_verifier={VERIFIER} -d code=$CODE"
    )


def authorize_url(base: str, state: str = "demo") -> str:
    """Where a browser begins."""
    query = {
        "response_type": "code", "client_id": WEB, "redirect_uri": BACK, "state": state,
        "code_challenge": pkce.challenge_of(VERIFIER), "code_challenge_method": pkce.METHOD,
    }  # fmt: skip
    return f"{base}/auth/v1/authorize?{urlencode(query)}"
