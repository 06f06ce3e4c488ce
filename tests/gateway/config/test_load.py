"""A configuration is taken whole or not at all, and everything that is wrong is told at once."""

import copy
from contextlib import suppress
from datetime import UTC, date, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import Client, ConfigError, Fault, Route, Settings, UpstreamSettings, load
from policies.model import TrafficClass
from policies.statuses import Kind, Status
from tests.gateway.config.sites import LEAST, NOW, Site

ROOT = Path(__file__).parents[3]


def test_the_least_configuration_has_the_recommendations_and_the_documented_defaults(site: Site) -> None:
    configuration = site.load(LEAST)
    assert configuration.warnings == ()
    assert configuration.rules == ()
    assert configuration.settings.hold_total == 60.0
    assert configuration.settings.data_dir == site.directory / "var"
    assert [(one.address, one.port, one.traffic_class) for one in configuration.settings.listeners] == [
        ("127.0.0.1", 8080, TrafficClass.REALTIME)
    ]
    assert configuration.layout.pools["base"].slots == 4
    assert configuration.layout.pools["unclassified"].slots == 2
    assert not configuration.calendar.is_open(datetime(2026, 11, 24, 7, 0, tzinfo=UTC))  # 08:00 in Brussels
    assert configuration.calendar.is_open(datetime(2026, 11, 24, 16, 0, tzinfo=UTC))


def test_the_clock_of_the_host_tells_the_day_when_no_instant_is_given(site: Site) -> None:
    assert load(site.write(LEAST), {}).calendar.zone is not None


def test_settings_can_be_built_without_a_file_for_programs() -> None:
    client = Client(name="a", networks=(ip_network("10.0.0.0/8"),), traffic_class=TrafficClass.BULK)
    settings = Settings(
        upstreams={"u": UpstreamSettings(url="http://127.0.0.1:1", call_timeout=1.0, hold=1.0)},
        routes=(Route(prefix="/", upstream="u"),),
        clients=(client,),
    )
    assert settings.hold_total == 2.0
    assert settings.clients[0].networks == (ip_network("10.0.0.0/8"),)
    assert Settings().hold_total == 60.0


def test_settings_cannot_be_changed(site: Site) -> None:
    with pytest.raises(ValueError, match="frozen"):
        site.load(LEAST).settings.drain_time = 3


def test_durations_sizes_and_rates_arrive_in_their_units(site: Site) -> None:
    settings = site.load(
        "upstreams: {bcss: {url: 'http://[::1]:1', call_timeout: 500ms, hold: 1min}, b: {url: 'http://h', hold: 1}}\n"
        "routes: [{prefix: /, upstream: bcss}]\n"
        "bulk: {body_limit: 64KiB, pools: {base: {rate: 600/min}}}\nlimits: {body_pace: 2KiB/s}\n"
    ).settings
    assert settings.upstreams["bcss"].call_timeout == 0.5
    assert settings.hold_total == 60.5
    assert settings.bulk.body_limit == 65_536
    assert settings.bulk.pools["base"].rate == 10
    assert settings.limits.body_pace == 2048


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://H.example", "h.example", 80, "h.example"),
        ("https://h.example:443", "h.example", 443, "h.example"),
        ("https://h.example:4520/", "h.example", 4520, "h.example:4520"),
        ("http://[::1]:8479", "::1", 8479, "[::1]:8479"),
    ],
)
def test_an_upstream_knows_its_host_port_and_authority(
    url: str, host: str, port: int, authority: str, site: Site
) -> None:
    upstream = site.load(
        f"upstreams: {{u: {{url: '{url}'}}}}\nroutes: [{{prefix: /, upstream: u}}]\n"
    ).settings.upstreams["u"]
    assert (upstream.host, upstream.port, upstream.authority) == (host, port, authority)
    assert upstream.uses_tls is url.startswith("https")


def test_clients_become_rules_in_their_order(site: Site) -> None:
    first, second = site.more(
        "clients:\n- {name: a, networks: [10.0.0.0/8, '::1'], class: realtime}\n"
        "- {name: b, user_agents: [Batch/], class: bulk}\n"
    ).rules
    assert first.networks == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert (first.traffic, second.traffic) == (TrafficClass.REALTIME, TrafficClass.BULK)
    assert second.user_agents == ("Batch/",)


def test_windows_follow_the_settings(site: Site) -> None:
    calendar = site.more(
        "windows:\n  open_dates: [2026-11-24]\n  closed_dates: [2026-11-28]\n"
        "  exceptions: [{from: '2026-11-25T12:00', to: '2026-11-25T12:00+00:00', owner: o, reason: r}]\n"
    ).calendar
    assert calendar.is_open(datetime(2026, 11, 24, 9, tzinfo=UTC))
    assert not calendar.is_open(datetime(2026, 11, 28, 9, tzinfo=UTC))
    assert calendar.is_open(datetime(2026, 11, 25, 11, 30, tzinfo=UTC))
    assert not calendar.is_open(datetime(2026, 11, 25, 12, 0, tzinfo=UTC))


def test_public_holidays_are_closed_unless_they_are_opened_and_own_closed_dates_win(site: Site) -> None:
    easter_monday = datetime(2027, 3, 29, 9, tzinfo=UTC)
    assert not site.more("windows: {holidays: closed}").calendar.is_open(easter_monday)
    assert site.more("windows: {holidays: open}").calendar.is_open(easter_monday)
    assert not site.more("windows: {holidays: open, closed_dates: [2027-03-29]}").calendar.is_open(easter_monday)
    assert date(2025, 11, 11) in site.more("windows: {holidays: open}").calendar.open_dates


def test_a_site_lays_its_own_services_over_the_shipped_ones(site: Site) -> None:
    site.write("sources:\n  own-register: {title: Own register}\n", "own.yaml")
    assert "own-register" in site.more("catalogue: [own.yaml]\n").catalogue.sources


def test_shares_and_own_caps_reach_the_layout(site: Site) -> None:
    pools = site.more("bulk: {total_bulk: 9, share: {base: 1}, pools: {onss: {slots: 1}}}\n").layout
    assert (pools.total, pools.pools["base"].slots, pools.pools["onss"].slots) == (9, 1, 0)


def test_all_faults_are_told_at_once_in_the_order_of_the_file(site: Site) -> None:
    text = (
        "mode: observ\n"
        "listners: []\n"
        "upstreams:\n"
        "  bcss:\n"
        "    url: https://user:hidden@host/path\n"
        "    key_password: hidden\n"
        "    call_timout: 5m\n"
        "    ca: gone.pem\n"
        "routes:\n"
        "  - {prefix: /a, upstream: bcs}\n"
        "  - {prefix: bulk, upstream: bcss}\n"
        "  - {prefix: /a, upstream: bcss, sources: [onsss]}\n"
        "bulk: {closed: later, pools: {onss: {slots: 3}}}\n"
    )
    faults = site.faults(text)
    assert [fault.partition(" ")[2].partition(":")[0] for fault in faults] == [
        "mode",
        "listners",
        "upstreams.bcss.url",
        "upstreams.bcss.key_password",
        "upstreams.bcss.call_timout",
        "upstreams.bcss.ca",
        "routes[0].upstream",
        "routes[1].prefix",
        "routes[2].prefix",
        "routes[2].sources[0]",
        "bulk.closed",
        "bulk.pools.onss.slots",
    ]
    assert faults[0] == 'config.yaml:1:7: mode: "observ" is not one of enforce, observe. Did you mean "observe"?'
    assert faults[1] == 'config.yaml:2:1: listners: is not a key here. Did you mean "listeners"?'
    assert faults[4] == 'config.yaml:7:5: upstreams.bcss.call_timout: is not a key here. Did you mean "call_timeout"?'
    assert faults[6].endswith('there is no upstream "bcs". Did you mean "bcss"?')
    assert faults[8].startswith("config.yaml:12:14: routes[2].prefix: /a has a route already.")
    assert not any("hidden" in fault for fault in faults)


def test_duplicate_keys_do_not_hide_other_faults(site: Site) -> None:
    assert [fault.split(": ")[1] for fault in site.faults(f"{LEAST}drain_time: 1\ndrain_time: x\nmode: no\n")] == [
        "drain_time",
        "mode",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drain_time: [1]", "drain_time: a list is not a duration"),
        ("telemetry: [1]", "telemetry: needs a group of keys and holds a list. Keys that fit: address, port."),
        ("telemetry:", "telemetry: needs a group of keys and holds nothing"),
        ("clients: 3", "clients: needs a list and holds a number or truth value"),
        ("bulk: {pools: x}", "bulk.pools: needs a group of keys and holds text. Write `name:`"),
        ("telemetry: {port: '9464'}", 'telemetry.port: "9464" is not a whole number'),
        ("telemetry: {port: 09464}", 'telemetry.port: "09464" is not a whole number'),
        ("telemetry: {port: 1.5}", "telemetry.port: 1.5 is not a whole number"),
        ("telemetry: {port: true}", "telemetry.port: true is not a whole number"),
        ("telemetry: {port: -1}", "telemetry.port: -1 is too small. Write at least 0."),
        ("telemetry: {port: 70000}", "telemetry.port: 70000 is too large. Write at most 65535."),
        ("answers: {decision_header: yes}", 'answers.decision_header: "yes" is not true or false'),
        ("answers: {decision_header: 1}", "answers.decision_header: 1 is not true or false"),
        ("telemetry: {address: localhost}", 'telemetry.address: "localhost" is not an IP address'),
        ("telemetry: {address: 1}", "telemetry.address: 1 is not an IP address"),
        ("listeners: [{traffic_class: bulk}]", "listeners[0].traffic_class: is not a key here"),
        ("bulk: {closed: later}", "bulk.closed: "),
        ("administration: {tokens: [{name: a, sha256: abc}]}", "administration.tokens[0].sha256: "),
        (
            "bulk: {reading: strikt}",
            'bulk.reading: "strikt" is not one of default, strict, split. Did you mean "strict"?',
        ),
        ("bulk: {margin_min: 10min}", "bulk.margin_min: `margin_min` is above `margin_max`"),
        ("bulk: {margin_max: 0}", "bulk.margin_max: `margin_min` is above `margin_max`"),
        ("bulk: {pools: {onss: {slots: 3}}}", "bulk.pools.onss.slots: 3 is above the recommended 2"),
        (
            "bulk: {reading: strict, pools: {onss: {slots: 1}}}",
            'bulk.pools.onss: there is no pool "onss" in the reading',
        ),
        ("bulk: {share: {base: 5}}", "bulk.share.base: 5 is above the pool's cap of 4. Write 0 to 4."),
        ("bulk: {pools: {base: {slots: 1}}, share: {base: 2}}", "bulk.share.base: 2 is above the pool's cap of 1"),
        ("bulk: {share: {bse: 1}}", 'bulk.share.bse: there is no pool "bse"'),
        ("mode: observe", "mode: needs to say who observes and until when"),
        ("mode: observe\nobserve: {owner: o, until: 2026-11-23}", "observe.until: 2026-11-23 is past"),
        ("mode: observe\nobserve: {owner: o, until: 2027-02-25}", "observe.until: 2027-02-25 is too far away"),
        ("listeners: []", "listeners: is empty"),
        ("listeners: [{port: 1}, {port: 1}]", "listeners[1]: port 1 of 127.0.0.1 is taken by a listener above"),
        ("listeners: [{port: 1}, {port: 1, address: 0.0.0.0}]", "listeners[1]: port 1 of 0.0.0.0 is taken"),
        ("listeners: [{port: 9464}]", "telemetry: port 9464 is taken by a listener"),
        ("clients: [{name: a}]", "clients[0]: would match everybody"),
        ("clients: [{name: a, networks: []}]", "clients[0].networks: is empty: it would match everybody"),
        ("clients: [{name: a, networks: [10.0.0.1/8]}]", 'clients[0].networks[0]: "10.0.0.1/8" is not an address or'),
        ("clients: [{name: a, networks: [8]}]", "clients[0].networks[0]: 8 is not an address or an address range"),
        ("clients: [{name: a, basic_users: [b], class: realtime}]", "clients[0].class: realtime needs a verified"),
        (
            "clients: [{name: a, user_agents: [b], may_declare_realtime: true}]",
            "clients[0].may_declare_realtime: needs a verified criterion",
        ),
        ("clients: [{name: a, tls_subjects: [CN=a]}]", "clients[0].tls_subjects: cannot match: no listener asks"),
        ("clients: [{name: a, basic_users: [12]}]", "clients[0].basic_users[0]: 12 is read as a number"),
        ("windows: {holidays: no}", 'windows.holidays: "no" is not one of closed, open'),
        (
            "windows: {open_dates: [2026-12-24], closed_dates: [2026-12-24]}",
            "windows.closed_dates[0]: 2026-12-24 is in",
        ),
        (
            "windows: {exceptions: [{from: 2026-03-29T02:30, to: 2026-03-29T04:00, owner: o, reason: r}]}",
            "windows.exceptions[0].from: 2026-03-29 02:30 does not exist: clocks are put forward",
        ),
        (
            "windows: {exceptions: [{from: 2026-03-29T05:00, to: 2026-03-29T04:00, owner: o, reason: r}]}",
            "windows.exceptions[0].to: is not after `from`",
        ),
        (
            "windows: {exceptions: [{from: 2026-03-01T05:00, to: 2026-04-02T05:00, owner: o, reason: r}]}",
            "windows.exceptions[0].to: is more than 31 days after `from`",
        ),
        (
            "windows: {exceptions: [{from: 2026-03-01T05:00}]}",
            "windows.exceptions[0].to: is missing. End, Brussels time",
        ),
        ("listeners: [{port: 8081}]", "administration: port 8081 is taken by a listener, or by telemetry."),
        ("administration: {port: 9464, address: 0.0.0.0}", "administration: port 9464 is taken by a listener, or by"),
        (
            f"administration: {{tokens: [{{name: a, sha256: {'0' * 64}}}, {{name: a, sha256: {'1' * 64}}}]}}",
            'administration.tokens[1].name: there is a token of "a" already.',
        ),
        ("store: {url: {env: URL}}\nbulk: {share: {base: 1}}", "bulk.share: does not go with `store.url`."),
        ("store: {url: {env: URL}}\nbulk: {total_bulk: 4}", "bulk.total_bulk: does not go with `store.url`."),
        ("data_dir: config.yaml", "data_dir: "),
        ("catalogue: [gone.yaml]", "catalogue[0]: there is no file"),
    ],
)
def test_each_fault_is_told_in_plain_words(text: str, fault: str, site: Site) -> None:
    site.environ["URL"] = "postgresql:///x"
    assert fault in " ".join(site.faults(LEAST + text))


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("{prefix: /bulk, upstream: u}", "routes[0].prefix: /bulk belongs to the gateway itself"),
        ("{prefix: /.gateway/x, upstream: u}", "routes[0].prefix: /.gateway/x belongs to the gateway itself"),
        ("{prefix: '/a?b', upstream: u}", "routes[0].prefix: has a query or a fragment"),
        ("{prefix: /a, upstream: u, replace: '/b#c'}", "routes[0].replace: has a query or a fragment"),
        ("{prefix: /a, upstream: u, replace: /}", "routes[0].replace: and `prefix` end differently"),
        ("{prefix: a, upstream: u}", 'routes[0].prefix: "a" is not a path that begins with /'),
        ("{prefix: /é, upstream: u}", 'routes[0].prefix: "/é" is not a path'),
        ("{upstream: u}", "routes[0].prefix: is missing. Paths that begin so"),
        ("{prefix: /, upstream: u, sources: []}", "routes[0].sources: is empty"),
        ("{prefix: /, upstream: u, sources: [onsss]}", 'there is no source "onsss". Did you mean "onss"?'),
    ],
)
def test_each_fault_of_a_route_is_told(route: str, fault: str, site: Site) -> None:
    assert fault in site.fault(f"upstreams: {{u: {{url: 'http://h'}}}}\nroutes: [{route}]\n")


@pytest.mark.parametrize(
    ("upstream", "fault"),
    [
        ("{url: 'http://h', server_name: x}", "upstreams.u.server_name: has no use: the URL begins with http://"),
        ("{url: 'https://h', key: here}", "upstreams.u.key: has no use without `certificate`"),
        ("{url: 'https://h', key_password: {env: PW}}", "upstreams.u.key_password: has no use without `certificate`"),
        ("{url: 'https://h', total_timeout: 1min}", "upstreams.u.first_byte_timeout: is longer than `total_timeout`"),
        ("{url: 'https://h', call_timeout: 0}", "upstreams.u.call_timeout: 0 is outside what is allowed here"),
        ("{environment: prod, url: 'https://h'}", '"prod" is not one of test, acceptance, production.'),
        ("{}", "upstreams.u.url: is missing. Scheme, host and port; the path is the caller's. Add it"),
        ("{url: 'https://h', connections: 0}", "upstreams.u.connections: 0 is too small"),
    ],
)
def test_each_fault_of_an_upstream_is_told(upstream: str, fault: str, site: Site) -> None:
    site.write("x", "here")
    site.environ["PW"] = "hidden"
    assert fault in site.fault(f"upstreams: {{u: {upstream}}}\nroutes: [{{prefix: /, upstream: u}}]\n")


@pytest.mark.parametrize("text", ["", "mode: enforce\n", "upstreams: {}\nroutes: []\n"])
def test_upstreams_and_routes_cannot_be_left_out(text: str, site: Site) -> None:
    upstreams, routes = sorted(fault.partition(" ")[2] for fault in site.faults(text))[::-1]
    assert upstreams.startswith("upstreams: names no upstream. Add at least one")
    assert routes.startswith("routes: says nowhere where calls go. Add at least one")


@pytest.mark.parametrize("text", ["[]", "x", "3"])
def test_a_document_that_is_no_group_of_keys_is_one_fault(text: str, site: Site) -> None:
    assert "needs a group of keys" in site.fault(text)


def test_a_name_of_an_upstream_that_cannot_be_a_label_is_told_at_the_key(site: Site) -> None:
    text = "upstreams:\n  'b c': {url: 'http://h'}\nroutes: [{prefix: /, upstream: x}]\n"
    assert site.faults(text)[0].startswith('config.yaml:2:3: upstreams.b c: "b c" is not a name of letters')


def test_faults_in_a_list_keep_the_numbers_of_their_items(site: Site) -> None:
    """The first item is taken out so that the rest can be checked; the second is still the second."""
    text = "upstreams: {u: {url: 'http://h'}}\nroutes:\n- {prefix: x, upstream: u}\n- {prefix: /bulk/, upstream: u}\n"
    assert [fault.split(": ")[1] for fault in site.faults(text)] == ["routes[0].prefix", "routes[1].prefix"]


def test_faulty_listeners_do_not_make_client_certificates_faulty_too(site: Site) -> None:
    tls = "{certificate: gone, client_ca: gone, client_certificate: required}"
    faults = site.faults(f"{LEAST}listeners: [{{tls: {tls}}}]\nclients: [{{name: a, tls_subjects: [CN=a]}}]\n")
    assert [fault.split(": ")[1] for fault in faults] == ["listeners[0].tls.certificate", "listeners[0].tls.client_ca"]
    assert "listeners: needs a list" in site.fault(
        f"{LEAST}listeners: 1\nclients: [{{name: a, tls_subjects: [CN=a]}}]\n"
    )


def test_faults_of_the_sites_catalogue_stand_in_its_own_file(site: Site) -> None:
    site.write("sources:\n  onss: {}\n  onss: {}\n", "own.yaml")
    site.write("[]", "list.yaml")
    assert site.faults(f"{LEAST}catalogue: [own.yaml, list.yaml]\n") == [
        "list.yaml:1:1: holds no services. See policies/catalogue.yaml for the form.",
        "own.yaml:3:3: sources.onss: stands twice. Keep one; the first is on line 2.",
    ]


def test_what_the_catalogue_does_not_accept_is_told_with_file_and_line(site: Site) -> None:
    site.write("# own\nsources:\n  onss: 3\n", "own.yaml")
    assert all(fault.startswith("own.yaml:3:") for fault in site.faults(f"{LEAST}catalogue: [own.yaml]\n"))


def test_a_site_lays_its_own_meanings_of_statuses_over_the_shipped_ones(site: Site) -> None:
    site.write("codes:\n  MSG00005: {kind: ok, means: ours}\nhttp:\n  403: {kind: reject}\n", "own.yaml")
    statuses = site.load(f"{LEAST}statuses: [own.yaml]\n").statuses
    ours, shipped, forbidden = (
        statuses.of_status(Status(("MSG00005",))),
        statuses.of_status(Status(("MSG00006",))),
        statuses.of_http(403),
    )
    assert ours is not None
    assert (ours.kind, ours.meaning.text) == (Kind.OK, "ours")
    assert shipped is not None
    assert shipped.kind is Kind.REJECT
    assert forbidden is not None
    assert forbidden.kind is Kind.REJECT


def test_faults_of_the_sites_statuses_stand_in_its_own_files(site: Site) -> None:
    site.write("# own\ncodes:\n  MSG00005: {kind: perhaps}\nhttp:\n  6xx: {kind: reject}\n", "own.yaml")
    site.write("[]", "list.yaml")
    assert site.faults(f"{LEAST}statuses: [list.yaml]\n") == [
        "list.yaml:1:1: holds no statuses. See policies/statuses.yaml for the form.",
    ]
    first, second = site.faults(f"{LEAST}statuses: [own.yaml]\n")
    assert first.startswith("own.yaml:3:13: codes.MSG00005: needs kind, one of ok, nothing_found, partial, reject, ")
    assert first.endswith(" See policies/statuses.yaml for the form.")
    assert second.startswith("own.yaml:5:")


def test_a_configuration_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file or directory\. Name the configuration with --config"):
        load(tmp_path / "gone.yaml", {}, now=NOW)


def test_secrets_are_read_and_never_shown(site: Site) -> None:
    site.environ["PW"] = "hidden"
    settings = site.load(
        "upstreams: {u: {url: 'http://127.0.0.1:1', credentials: {user: a, password: {env: PW}}}}\n"
        "routes: [{prefix: /, upstream: u}]\n"
    ).settings
    credentials = settings.upstreams["u"].credentials
    assert credentials is not None
    assert credentials.password.get_secret_value() == "hidden"
    assert "hidden" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("mode: observe\nobserve: {owner: o, until: 2026-11-24}", "mode: observe: nothing is refused and no cap holds"),
        ("observe: {owner: o, until: 2026-11-24}", "observe: has no effect while `mode` is enforce."),
        (
            "bulk: {pools: {onss: {slots: 3, exceeds_recommendation: agreed}}}",
            "bulk.pools.onss: 3 slots, above the recommended 2 (agreed).",
        ),
        ("bulk: {pools: {onss: {exceeds_recommendation: agreed}}}", "bulk.pools.onss.exceeds_recommendation: has no"),
        ("bulk: {pools: {onss: {slots: 0}}}", "bulk.pools.onss.slots: 0 lets no bulk through"),
        ("bulk: {pools: {onss: {rate: 6/min}}}", "bulk.pools.onss.rate: less than one start in `queue_time`"),
        ("bulk: {share: {base: 2}}", "bulk.share: this gateway has no slot in "),
        (
            f"administration: {{address: 0.0.0.0, tokens: [{{name: a, role: operator, sha256: {'0' * 64}}}]}}",
            "administration: plain HTTP on 0.0.0.0: the tokens of a (operator), and results,",
        ),
        ("bulk: {closed: queue}", "bulk.closed: queue: upstreams.bcss has no `credentials`, so a call that carries"),
        ("bulk: {closed: park, park_length: 12000}", "limits.connections: parked calls"),
        ("listeners: [{address: 0.0.0.0}]", "listeners[0]: plain HTTP for other machines"),
        (
            "windows: {exceptions: [{from: 2026-11-24T05:00, to: 2026-11-24T10:00, owner: o, reason: r}]}",
            "windows.exceptions: 2026-11-24 05:00 to 2026-11-24 10:00 is in force (o: r).",
        ),
        (
            "windows: {exceptions: [{from: 2026-11-25T05:00, to: 2026-11-25T10:00, owner: o, reason: r}]}",
            "10:00 will open closed hours (o: r).",
        ),
        (
            "windows: {exceptions: [{from: 2026-11-23T05:00, to: 2026-11-23T10:00, owner: o, reason: r}]}",
            "10:00 is over; take it out.",
        ),
    ],
)
def test_what_is_allowed_and_dangerous_is_warned_of(text: str, warning: str, site: Site) -> None:
    assert warning in "\n".join(site.more(text).warnings)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("postgresql://u:hidden@db.example/runs", True),
        ("postgresql://u:hidden@db.example/runs?sslmode=require", True),
        ("postgresql://u:hidden@db.example:no/x:hidden", True),
        ("postgresql://u:hid[den@x", True),
        ("postgresql:///runs?host=db.example", True),
        ("postgresql://u:hidden@db.example/runs?sslmode=verify-full", False),
        ("postgresql://u:hidden@127.0.0.1/runs", False),
        ("postgresql:///runs?host=/run/postgresql", False),
        ("postgresql:///runs", False),
    ],
)
def test_a_store_is_warned_of_when_others_can_stand_between(url: str, warned: bool, site: Site) -> None:
    site.environ |= {"URL": url, "KEY": "0"}
    warnings = site.more("store: {url: {env: URL}, key: {env: KEY}}").warnings
    assert [warning.partition(" to ")[0] for warning in warnings] == (["store.url: TLS"] if warned else [])
    assert "hid" not in "".join(warnings)


def test_gateways_that_share_a_store_are_warned_of_keys_of_their_own(site: Site) -> None:
    site.environ["URL"] = "postgresql:///runs"
    (warning,) = site.more("store: {url: {env: URL}}").warnings
    assert warning.startswith("store.key: each gateway makes its own")


def test_upstreams_are_warned_of_when_they_mix_environments_are_unused_in_clear_or_held_too_briefly(site: Site) -> None:
    warnings = site.load(
        "upstreams:\n"
        "  a: {url: 'https://b2b-test.ksz-bcss.fgov.be:4520'}\n"
        "  b: {url: 'https://bcssksz-services-acpt.smals.be'}\n"
        "  c: {url: 'https://b2b.ksz-bcss.fgov.be:4520'}\n"
        "  d: {url: 'http://gateway.example', environment: test}\n"
        "  e: {url: 'http://localhost:1', hold: 1s}\n"
        "routes:\n" + "".join(f"- {{prefix: /{name}, upstream: {name}}}\n" for name in "abcd")
    ).warnings
    assert [warning.partition(" (")[0] for warning in warnings] == [
        "routes: mix BCSS environments",
        "upstreams.e: no route leads there.",
        "upstreams.d.url: plain HTTP to gateway.example; persons' data can be read on the way.",
        "upstreams.e.hold: a source that works on for over 1 s after the call timeout may have more calls in progress "
        "than its cap.",
    ]
    assert "(acceptance: b; production: c; test: a, d)" in warnings[0]


EXAMPLE = yaml.safe_load((ROOT / "config.example.yaml").read_text(encoding="utf-8"))
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["8s", "/", "bulk"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for part, value in inner for place in places(value, (*path, part)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from(places(EXAMPLE)[1:]), ANYTHING), min_size=1, max_size=3))
def test_whatever_stands_in_place_of_a_value_it_loads_or_is_told(
    changes: list[tuple[tuple[Any, ...], Any]], tmp_path: Path
) -> None:
    """No value breaks the reading, and a fault always has a place in the file."""
    content = copy.deepcopy(EXAMPLE)
    for (*around, last), value in changes:
        holder: Any = content
        with suppress(LookupError, TypeError):  # an earlier change took away what was to be changed
            for part in around:
                holder = holder[part]
            holder[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    faults: tuple[Fault, ...] = ()
    try:
        load(path, {}, now=NOW)
    except ConfigError as error:
        faults = error.faults
    assert all(fault.line >= 1 and fault.what for fault in faults)
