"""agent.toml: what it becomes, and every fault with its line and path."""

from __future__ import annotations

import os

import pytest

from gateway.agent.config_file import load_config
from gateway.agent.endpoint import Endpoint
from gateway.agent.services import Services
from gateway.agent.toml_lines import key_lines
from gateway.agent.toml_table import BadConfig

COMPLETE = """\
gateway = "wss://gw.example"
unit = "linden-clinic"
key = "unit.key"
kid = "k-7"
connections = 3
rotate_days = 7
grace_s = 12.5
context_key = "context"
state_dir = "state"
health_file = "run/health.json"

[ledger]
keep_h = 12
max_bytes = 1_000_000

[log]
level = "debug"
file = "agent.log"

[[service]]
prefix = "/fhir"
target = "http://127.0.0.1:9102"
allow = ["GET /fhir/*"]
max_concurrent = 4
deadline_s = 20
request_max_bytes = 1000
response_max_bytes = 2000

[[service]]
prefix = "/fhir/Binary"
strip_prefix = true
target = "http://127.0.0.1:9103/store"
allow = [
  "GET /store/*",
  "PUT /store/*",
]
"""


@pytest.fixture
def load(tmp_path, key_file):
    (tmp_path / "context").write_bytes(b"k" * 32)
    (tmp_path / "state").mkdir()
    (tmp_path / "bad.key").write_bytes(b"no key")

    def load_text(text):
        path = tmp_path / "agent.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path)

    return load_text


def test_complete(load, tmp_path):
    settings = load(COMPLETE)
    assert settings.gateway == Endpoint(True, "gw.example", 443, "/relay/v1/connect")
    assert (settings.identity.unit, settings.identity.kid) == ("linden-clinic", "k-7")
    assert (settings.connections, settings.grace_s, settings.log_level) == (3, 12.5, "debug")
    assert settings.context is not None
    assert settings.rotate_after_s == 7 * 86_400
    assert settings.log_file == tmp_path / "agent.log"
    assert settings.health_file == tmp_path / "run/health.json"
    assert (settings.ledger.directory, settings.ledger.keep_s) == (tmp_path / "state", 43_200)
    assert settings.ledger.max_bytes == 1_000_000
    first, second = settings.services
    assert (first.prefix, first.max_concurrent, first.deadline_s) == ("/fhir", 4, 20)
    assert (first.request_max_bytes, first.response_max_bytes) == (1000, 2000)
    assert second.allow.admits("PUT", "/store/a")
    assert settings.warnings == ()


SHORT = """\
gateway = "ws://127.0.0.1:1"
unit = "u"
state_dir = "state"
service = [{target = "http://h", allow = []}]
"""


def test_the_key_is_in_the_state_directory_unless_it_is_named(load, tmp_path):
    os.replace(tmp_path / "unit.key", tmp_path / "state" / "unit.key")
    settings = load(SHORT)
    assert settings.ledger is not None
    assert not settings.services[0].allow.admits("GET", "/")


def test_the_ledger_can_be_off(load):
    assert (
        load(SHORT.replace('unit = "u"', 'unit = "u"\nkey = "unit.key"') + "[ledger]\nenabled = false\n").ledger is None
    )


@pytest.mark.parametrize(
    ("path", "found", "local"),
    [
        ("/fhir", "/fhir", "/fhir"),
        ("/fhir/Patient/1", "/fhir", "/fhir/Patient/1"),
        ("/fhir/Binary", "/fhir/Binary", "/store/"),
        ("/fhir/Binary/7", "/fhir/Binary", "/store/7"),
        ("/fhir/Binaries", "/fhir", "/fhir/Binaries"),
        ("/fhirs", None, None),
        ("/", None, None),
    ],
)
def test_the_longest_prefix_wins(load, path, found, local):
    service = Services(load(COMPLETE)).find(path)
    assert (service and service.settings.prefix) == found
    assert (service and service.settings.local(path)) == local


MINIMAL = 'gateway = "ws://127.0.0.1:1"\nunit = "u"\nkey = "unit.key"\n'
SERVICE = '[[service]]\ntarget = "http://h"\nallow = ["GET /*"]\n'
FAULTS = [
    ("no gateway", 'unit = "u"\nkey = "unit.key"\n' + SERVICE, ["line 1: gateway: is missing"]),
    ("nothing", "", ["gateway: is missing", "unit: is missing", "key: is missing", "service: is missing"]),
    ("unknown key", MINIMAL + 'colour = "red"\n' + SERVICE, ["line 4: colour: is not known here"]),
    ("unknown table", MINIMAL + SERVICE + "[ledgers]\n", ["line 7: ledgers: is not known here"]),
    ("in a service", MINIMAL + SERVICE + "weight = 1\n", ["line 7: service[0].weight: is not known here"]),
    (
        "in the second",
        MINIMAL + SERVICE + SERVICE + "x = 1\n",
        ["line 10: service[1].x", "service[1].prefix: is another"],
    ),
    ("kind", MINIMAL + "connections = true\n" + SERVICE, ["line 4: connections: must be a whole number"]),
    ("range", MINIMAL + "connections = 9\n" + SERVICE, ["line 4: connections: must be 1 to 4"]),
    ("float", MINIMAL + "connections = 1.5\n" + SERVICE, ["line 4: connections: must be a whole number"]),
    ("unit", MINIMAL.replace('"u"', '"U"') + SERVICE, ["line 2: unit: must be lower case"]),
    ("gateway", MINIMAL.replace("ws:", "ftp:") + SERVICE, ["line 1: gateway: must start with"]),
    ("key file", MINIMAL.replace("unit.key", "none.key") + SERVICE, ["line 3: key: no such file"]),
    ("bad key", MINIMAL.replace("unit.key", "bad.key") + SERVICE, ["line 3: key: ", "not a PEM private key"]),
    ("state", MINIMAL + 'state_dir = "none"\n' + SERVICE, ["line 4: state_dir: no such directory"]),
    ("ledger without state", MINIMAL + SERVICE + "[ledger]\nmax_entries = 5\n", ["ledger.enabled: a ledger needs"]),
    (
        "ledger",
        MINIMAL + 'state_dir = "state"\n' + SERVICE + "[ledger]\nkeep_h = 0\n",
        ["line 9: ledger.keep_h: must be"],
    ),
    ("log", MINIMAL + SERVICE + '[log]\nlevel = "loud"\n', ["line 8: log.level: must be one of"]),
    ("rule", MINIMAL + SERVICE.replace("GET", "get"), ["line 6: service[0].allow: 'get /*'"]),
    ("rules", MINIMAL + SERVICE.replace('"GET /*"', "1"), ["line 6: service[0].allow[0]: must be a string"]),
    ("no rules", MINIMAL + '[[service]]\ntarget = "http://h"\n', ["line 4: service[0].allow: is missing"]),
    ("target", MINIMAL + SERVICE.replace("http:", "ws:"), ["line 5: service[0].target: must start with"]),
    ("prefix", MINIMAL + SERVICE + 'prefix = "/a/"\n', ["line 7: service[0].prefix: must be / or a path"]),
    (
        "prefix form",
        MINIMAL + SERVICE + 'prefix = "a/../b"\n',
        ["line 7: service[0].prefix: must be a path in canonical"],
    ),
    ("service as table", MINIMAL + '[service]\ntarget = "x"\n', ["line 4: service: must be tables"]),
    ("table as text", MINIMAL + 'log = "x"\n' + SERVICE, ["line 4: log: must be a table"]),
    (
        "two at once",
        MINIMAL + "grace_s = -1\n" + SERVICE + "idle_s = -1\n",
        ["line 4: grace_s", "line 8: service[0].idle_s"],
    ),
    ("syntax", MINIMAL + "x = \n", ["line 4: column 5: Invalid value"]),
    ("twice", MINIMAL + 'unit = "v"\n', ["line 4: column 11: Cannot overwrite a value"]),
    ("unclosed", MINIMAL + 'x = "a\n', ["line 4: "]),
    ("end", MINIMAL + "x = [", ["line 4: "]),
    ("bytes", MINIMAL.encode() + b'x = "\xff"\n', ["line 4: not UTF-8"]),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_faults(load, text, expected):
    with pytest.raises(BadConfig) as caught:
        load(text)
    for part in expected:
        assert any(part in fault for fault in caught.value.faults), caught.value.faults
    lines = [int(fault.removeprefix("line ").partition(":")[0]) for fault in caught.value.faults]
    assert lines == sorted(lines)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadConfig, match="No such file"):
        load_config(tmp_path / "none.toml")


LINES = '''\
a = 1
b.c = "x # [not] = a table"
"quoted key" = 2
text = """
fake = 1
[fake]
"""
list = [
  1, # ]
  "]",
]
after = { inner = [1] }
[table]
d = 1
'single' = 'it\\'
[[array]]
e = 1
[array.sub]
f = 1
[[array]]
e = 2
  [[array.deep]]
  g = 1
  [[array.deep]]
  g = 2
'''


def test_where_keys_stand():
    found = key_lines(LINES)
    assert found == {
        ("a",): 1,
        ("b", "c"): 2,
        ("quoted key",): 3,
        ("text",): 4,
        ("list",): 8,
        ("after",): 12,
        ("table",): 13,
        ("table", "d"): 14,
        ("table", "single"): 15,
        ("array", 0): 16,
        ("array", 0, "e"): 17,
        ("array", 0, "sub"): 18,
        ("array", 0, "sub", "f"): 19,
        ("array", 1): 20,
        ("array", 1, "e"): 21,
        ("array", 1, "deep", 0): 22,
        ("array", 1, "deep", 0, "g"): 23,
        ("array", 1, "deep", 1): 24,
        ("array", 1, "deep", 1, "g"): 25,
    }
