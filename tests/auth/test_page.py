"""The login page: what it is made of, whom it sends where, and what it does not let others do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.auth import totp
from gateway.errors import DatabaseUnavailable, Overloaded
from tests.auth.kit import BACK, FAILURES, LOGIN_FAILURES, URL

pytestmark = pytest.mark.usefixtures("quick")


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def back(answer):
    """Where an answer sends to, and with what."""
    assert answer.status_code == 303, answer.text
    parts = urlsplit(answer.headers["location"])
    return f"{parts.scheme}:{'//' if parts.netloc else ''}{parts.netloc}{parts.path}", {
        name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()
    }


def test_a_login_sends_back_with_a_code(page):
    assert page.open().status_code == 200
    uri, given = back(page.send())
    assert uri == BACK
    assert given.pop("code").startswith("cgc_")
    assert given == {"state": "a&b=1", "iss": URL}


def test_the_page_loads_nothing_and_is_framed_by_nobody(page):
    answer = page.open()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'self' https://app.test"
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    elements = Elements(answer.text)
    assert not {tag for tag, _ in elements.found} & {"script", "img", "link", "iframe", "object", "base"}
    assert not [
        a for _, attributes in elements.found for a in attributes if a in ("src", "style") or a.startswith("on")
    ]
    assert "://" not in answer.text


def test_the_page_can_be_used_by_anybody(page):
    elements = Elements(page.open().text)
    assert elements.all("html")[0]["lang"] == "en"
    assert len(elements.all("h1")) == len(elements.all("title")) == len(elements.all("main")) == 1
    inputs = {each["id"]: each for each in elements.all("input") if each.get("type") != "hidden"}
    assert {each["for"] for each in elements.all("label")} == set(inputs) == {"username", "password", "totp"}
    assert [inputs[name]["autocomplete"] for name in ("username", "password", "totp")] == [
        "username", "current-password", "one-time-code",
    ]  # fmt: skip
    assert inputs["password"]["type"] == "password"
    assert "Patients <app>" in elements.text, "escaped"
    page.open()
    failed = Elements(page.send(password="wrong horse battery").text)
    alert = next(each for each in failed.all("p") if each.get("role") == "alert")
    assert next(each for each in failed.all("input") if each.get("id") == "username")["aria-describedby"] == alert["id"]


def test_a_custom_scheme_is_a_source_of_its_own(page):
    answer = page.open(redirect_uri="org.test.app:/back")
    assert "form-action 'self' org.test.app:;" in answer.headers["content-security-policy"]
    assert back(page.send())[0] == "org.test.app:/back"


def test_a_query_of_the_redirect_uri_stays(page):
    page.open(redirect_uri="https://app.test/other?x=1")
    _, given = back(page.send())
    assert given["x"] == "1"


NOBODY_TO_SEND = {
    "no client": {"client_id": None},
    "unknown client": {"client_id": "nobody"},
    "a client that is no app": {"client_id": "watch"},
    "no redirect_uri": {"redirect_uri": None},
    "another redirect_uri": {"redirect_uri": "https://evil.test/back"},
    "another path": {"redirect_uri": BACK + "/"},
    "another query": {"redirect_uri": BACK + "?x=1"},
    "another app's": {"client_id": "terminal"},
    "capitals": {"redirect_uri": BACK.replace("app", "APP")},
    "a user": {"redirect_uri": "https://app.test@evil.test/back"},
}


@pytest.mark.parametrize("changes", NOBODY_TO_SEND.values(), ids=NOBODY_TO_SEND.keys())
def test_nobody_is_sent_to_an_address_that_is_not_the_apps(page, changes):
    answer = page.open(**changes)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert answer.headers["content-type"].startswith("text/html")
    assert "evil" not in answer.text
    assert not Elements(answer.text).all("form")
    assert "form-action 'none'" in answer.headers["content-security-policy"]


SENT_BACK = {
    "no response_type": ({"response_type": None}, "unsupported_response_type"),
    "implicit": ({"response_type": "token"}, "unsupported_response_type"),
    "no challenge": ({"code_challenge": None}, "invalid_request"),
    "short challenge": ({"code_challenge": "short"}, "invalid_request"),
    "plain": ({"code_challenge_method": "plain"}, "invalid_request"),
    "no method": ({"code_challenge_method": None}, "invalid_request"),
    "fragment": ({"response_mode": "fragment"}, "invalid_request"),
    "a bad thumbprint": ({"dpop_jkt": "x"}, "invalid_request"),
    "a request object": ({"request": "x.y.z"}, "request_not_supported"),
    "a scope": ({"scope": "everything"}, "invalid_scope"),
}


@pytest.mark.parametrize(("changes", "error"), SENT_BACK.values(), ids=SENT_BACK.keys())
def test_an_app_is_told_what_is_wrong(page, changes, error):
    uri, given = back(page.open(**changes))
    assert (uri, given["error"], given["state"], given["iss"]) == (BACK, error, "a&b=1", URL)
    assert given["error_description"]


def test_a_long_state_is_refused_and_none_is_none(page):
    assert back(page.open(state="x" * 1_025))[1]["error"] == "invalid_request"
    page.open(state=None)
    assert "state" not in back(page.send())[1]


def test_parameters_twice(service):
    query = f"client_id=app&redirect_uri={BACK}&redirect_uri={BACK}"
    assert service.client.simulate_get("/auth/v1/authorize", query_string=query).status_code == 400


# --- forms of others


def test_a_form_needs_the_cookie_that_came_with_it(page):
    page.open()
    mine, page.cookie = page.cookie, ""
    assert page.send().status_code == 400
    page.cookie = "__Host-caregate-login=" + "x" * 43
    assert page.send().status_code == 400
    page.cookie = f"{mine}; {mine}"
    assert page.send().status_code == 400
    page.cookie = f"other=1; {mine}"
    assert page.send().status_code == 303


def test_a_form_of_another_browser_is_none(page):
    page.open()
    theirs = page.request
    page.cookie = ""
    page.open()
    page.request = theirs
    assert page.send().status_code == 400


FROM_ELSEWHERE = [
    {"Origin": "https://evil.test"}, {"Origin": "null"}, {"Origin": "http://api.test"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FROM_ELSEWHERE, ids=str)
def test_a_form_from_another_page_is_refused(page, headers):
    page.open()
    assert page.send(headers=headers).status_code == 400


def test_what_was_sealed_cannot_be_changed(page):
    page.open()
    good = page.request
    for bad in ("", good[:-1], good[:-4] + "AAAA", "A" + good[1:], "!" + good[1:], good + "A"):
        page.request = bad
        answer = page.send()
        assert answer.status_code == 400, bad
        assert "out of date" in answer.text
    page.request = good
    assert page.send().status_code == 303


def test_a_form_is_good_for_a_quarter_of_an_hour(page, service):
    page.open()
    cookie = page.cookie.partition("=")[2].encode()
    asked = json.loads(service.vault.forms.open(base64.urlsafe_b64decode(page.request + "=="), cookie))
    assert 890 < asked["until_s"] - time.time() <= 900
    for ago_s, status in ((890, 303), (901, 400)):
        older = json.dumps({**asked, "until_s": asked["until_s"] - ago_s}).encode()
        page.request = base64.urlsafe_b64encode(service.vault.forms.seal(older, cookie)).rstrip(b"=").decode()
        assert page.send().status_code == status


def test_the_cookie_is_for_this_host_alone(page):
    cookie = page.open().headers["set-cookie"]
    name, *flags = cookie.split("; ")
    assert name.startswith("__Host-caregate-login=")
    assert set(flags) == {"Path=/", "HttpOnly", "SameSite=Lax", "Secure"}
    assert "set-cookie" not in page.open().headers, "a second tab keeps it"


def test_on_this_machine_it_works_without_tls(page):
    headers = {"Host": "127.0.0.1:8080"}
    cookie = page.open(headers=headers).headers["set-cookie"]
    assert cookie.startswith("caregate-login=")
    assert "Secure" not in cookie
    assert page.send(headers={**headers, "Origin": "http://127.0.0.1:8080"}).status_code == 303
    assert page.send(headers={**headers, "Origin": "http://127.0.0.1:8081"}).status_code == 400


# --- wrong logins


@pytest.mark.parametrize(
    ("username", "password"),
    [("anna", "wrong horse battery"), ("nobody", "wrong horse battery"), ("dora", "correct horse battery"),
     ("weber", "correct horse battery"), ("<script>", "x"), ("", "")],
)  # fmt: skip
def test_every_wrong_login_is_told_the_same(page, username, password):
    page.open()
    answer = page.send(username, password)
    expected = page.send("berta", "whatever it may be")
    assert answer.status_code == expected.status_code == 403
    hidden = re.compile(r'value="[^"]*"')
    assert hidden.sub("", answer.text) == hidden.sub("", expected.text)
    assert "script" not in answer.text


def test_a_page_after_a_wrong_password_can_be_sent_again(page):
    page.open()
    answer = page.send(password="wrong horse battery")
    page.request = re.search(r'name="request" value="([^"]*)"', answer.text)[1]
    assert page.send().status_code == 303


def test_failures_are_limited_here_too(page):
    page.open()
    found = [page.send(password="wrong horse battery").status_code for _ in range(LOGIN_FAILURES + 1)]
    assert found == [403] * LOGIN_FAILURES + [429]
    answer = page.send()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 60
    assert "wait" in answer.text
    found = [page.send(f"nobody-{n}").status_code for n in range(FAILURES)]
    assert found[-1] == 429


@pytest.mark.parametrize("error", [Overloaded("x", retry_after_s=1), DatabaseUnavailable(retry_after_s=1)], ids=str)
def test_when_it_cannot_be_done_the_page_says_so(page, service, monkeypatch, error):
    def fail(*_):
        raise error

    page.open()
    monkeypatch.setattr(service.gateway.tokens._accounts, "find", fail)
    answer = page.send()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"].startswith("text/html")
    assert "try again" in answer.text


def test_a_one_time_code_may_have_a_space(page, service, sql):
    service.operator.set_factor("anna", service.vault.factors.seal(service.secret, service.ids["anna"].encode()))
    code = totp.code_at(service.secret, int(time.time()) // 30)
    page.open()
    assert page.send().status_code == 403
    assert page.send(totp=f"{code[:3]} {code[3:]}").status_code == 303


def test_what_else_may_be_asked_of_the_page(service):
    assert service.client.simulate_put("/auth/v1/authorize").status_code == 405
    assert service.client.simulate_post("/auth/v1/authorize", body="{}").status_code == 400
