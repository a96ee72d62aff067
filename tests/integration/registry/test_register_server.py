"""The command register_server, against a real server."""

import io

import pytest
from django.core.management import CommandError, call_command

from registry.models import MCPServer, Tenant
from tests.factories import MCPServerFactory, TenantFactory
from tests.mcp_server import closed_port, mcp_over_http
from tests.peers import running_peer

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def world(settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    settings.GATEWAY_HEALTH_TIMEOUT_MS = 5000
    TenantFactory(slug="default")


def test_it_registers_checks_and_reads_the_tools(capsys):
    with mcp_over_http() as url:
        call_command("register_server", "My Server", url, "--tag", "a", "--tag", "b")
    out = capsys.readouterr().out
    assert "/mcp/my-server" in out
    assert "Health: healthy" in out
    assert "Offers 2 tool(s), 2 resource(s), 1 prompt(s)." in out
    server = MCPServer.objects.get()
    assert (server.slug, server.tags, server.tools.count()) == ("my-server", ["a", "b"], 2)


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_server_gets_its_headers_from_a_file(way, tmp_path, monkeypatch, capsys):
    lines = "\ufeffX-API-Key: s3cret\r\n\nX-Team: a: b\n"
    (file := tmp_path / "headers").write_bytes(lines.encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    given = {"file": str(file), "stdin": "-"}[way]
    with running_peer() as peer:
        call_command("register_server", "x", peer.url, "--headers", given)
    sent = peer.seen[0]["headers"]
    assert (sent["x-api-key"], sent["x-team"]) == ("s3cret", "a: b")
    assert "s3cret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "^--headers: No such file"),
        (b"\xff\xfe", "^--headers: .* is no text"),
        (b"\n", "^--headers: There is no header"),
        (b"A: b\ns3cret", "^--headers: Line 2 is no header"),
        (b"Bearer s3cret:abc", "^--headers: Line 1 is no header; write Authorization"),
        (b"A: s3cret\n\na: s3cret2", r"^--headers: Line 3 repeats A\.$"),
        (b"A: s3cret\x0bB: c", "^--headers: The value of 'A' must be visible ASCII"),
        ("A: s3cret\u2028".encode(), "^--headers: The value of 'A' must be visible ASCII"),
        (b"A: s3cret\n" * 6554, "^--headers: Write at most 64 KiB"),
        (b"Host: s3cret", "^--headers: 'Host' is no header that may be set"),
    ],
)
def test_headers_that_cannot_be_sent_are_named_and_not_shown(content, words, tmp_path):
    file = tmp_path / "headers"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandError, match=words) as caught:
        call_command("register_server", "x", "https://8.8.8.8/", "--headers", str(file))
    assert caught.value.returncode == 2
    assert "s3cret" not in str(caught.value)
    assert not MCPServer.objects.exists()


def test_a_server_that_agents_cannot_call_is_said_to_be_one(capsys):
    url = f"http://127.0.0.1:{closed_port()}/sse"
    call_command("register_server", "Old", url, "--transport", "sse")
    out = capsys.readouterr().out
    assert "agents cannot call it, for it speaks sse" in out
    assert "/mcp/old" not in out


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("/", "^--headers: Is a directory: /$"),
        ("/dev/null", "^--headers: There is no header; write Authorization: Bearer …$"),
        ("/dev/zero", "^--headers: Write at most 64 KiB of headers.$"),
        ("-", "^--headers: Standard input is closed.$"),
    ],
)
def test_what_cannot_hold_headers_is_told_in_a_sentence(file, words, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of a closed one
    with pytest.raises(CommandError, match=words) as caught:
        call_command("register_server", "x", "https://8.8.8.8/", "--headers", file)
    assert caught.value.returncode == 2


def test_a_server_that_is_away_is_registered_and_said_to_be_away(capsys):
    call_command("register_server", "Away", f"http://127.0.0.1:{closed_port()}/mcp")
    assert "Health: unhealthy. No connection to 127.0.0.1" in capsys.readouterr().out
    assert MCPServer.objects.get().health_status == "unhealthy"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "https://8.8.8.8/", "--tenant", "nope"], "there are: default"),
        (["x", "nonsense"], "^URL: .*whole URL"),
        (["漢字", "https://8.8.8.8/"], r"^--slug: The name gives no slug; choose one of \D+$"),
        (["x", "https://8.8.8.8/", "--slug", "taken"], "^--slug: In .* 'taken' already; choose"),
        (["x", "https://8.8.8.8/", "--slug", "A"], "^--slug: Use lower-case letters"),
        (["x" * 256, "https://8.8.8.8/"], "^NAME: .* at most 255 characters"),
        (["x", "https://8.8.8.8/?token=1"], "^URL: .*store it as credentials"),
        ([" ", "https://8.8.8.8/"], "NAME is empty"),
        (["x", "cat", "--transport", "stdio"], "^--transport: .*GATEWAY_ALLOW_STDIO"),
    ],
)
def test_wrong_usage_is_one_sentence_that_names_the_argument(arguments, words):
    MCPServerFactory(slug="taken", tenant=Tenant.objects.get())
    with pytest.raises(CommandError, match=words) as caught:
        call_command("register_server", *arguments)
    assert caught.value.returncode == 2
    assert str(caught.value).count("hoose") <= 1, "said once"
    assert MCPServer.objects.count() == 1


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Größe", "grosse"), ("Søren Łódź", "soren-lodz"), ("Ça & là", "ca-la"), ("X" * 80, "x" * 63)],
)
def test_a_slug_keeps_every_letter_of_the_name(name, slug, capsys):
    call_command("register_server", name, f"http://127.0.0.1:{closed_port()}/mcp")
    assert f"/mcp/{slug}\n" in capsys.readouterr().out


def test_a_stdio_command_is_registered_when_that_is_allowed(settings, capsys):
    settings.GATEWAY_ALLOW_STDIO = True
    call_command("register_server", "猫", "false", "--transport", "stdio", "--slug", "cat")
    out = capsys.readouterr().out
    assert "Registered 'cat'" in out
    assert "Health: unhealthy" in out
