"""Redis with TLS, user and password, by nothing but the connection string."""

from __future__ import annotations

import pytest

from redis_servers import (
    PASSWORD,
    POWERLESS_USER,
    USER,
    USER_PASSWORD,
)
from tallystick.errors import UnavailableError
from tallystick.online_store.redis_commands import KEYS_PER_CALL
from tallystick.online_store.redis_connection import connect, shown_address
from tallystick.online_store.redis_options import RedisOptions
from tls_relay import HOST, Relay

SET = "for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i]) end return #KEYS"
WRONG = "s3cret"


def over_tls(port, authority, *options, host="localhost"):
    return ",".join([f"{host}:{port},ssl=true,ssl_ca_certs={authority}", *options])


@pytest.fixture(params=["one server", "cluster"])
def start(request, certificates):
    """The start of a connection string for TLS, without user and password."""
    if request.param == "cluster":
        text = request.getfixturevalue("tls_cluster").connection_string
    else:
        text = f"localhost:{request.getfixturevalue('tls_redis').port}"
    return f"{text},ssl=true,ssl_ca_certs={certificates.authority}"


def refusal(caller, text, **options):
    """What is said when Redis cannot be used, by reading and by asking directly."""
    with pytest.raises(UnavailableError) as caught:
        caller.mget(text, [b"key"], **options)
    with pytest.raises(UnavailableError) as again:
        caller.ping(text, **options)
    message = f"{caught.value}\n{again.value}"
    for secret in (PASSWORD, USER_PASSWORD, WRONG):
        assert secret not in message
    return str(caught.value)


@pytest.mark.parametrize(
    "login", [f"password={PASSWORD}", f"username={USER},password={USER_PASSWORD}"]
)
def test_reads_and_writes_over_tls_with_password_and_user(start, login, caller):
    text = f"{start},{login}"
    keys = [b"{%d}" % number for number in range(KEYS_PER_CALL + 50)]
    items = [(key, b"value of " + key) for key in keys]
    assert sum(caller.run_script(text, SET, items)) == len(keys)
    assert caller.mget(text, [b"none", *keys]) == [None, *(value for _, value in items)]
    assert sorted(caller.scan(text, b"{*")) == sorted(keys)
    caller.ping(text)


@pytest.mark.parametrize(
    ("login", "message"),
    [
        (f"password={WRONG}", "invalid username-password pair"),
        (f"username={USER},password={WRONG}", "invalid username-password pair"),
        (f"username=nobody,password={USER_PASSWORD}", "invalid username-password pair"),
        ("", "Authentication required"),
    ],
)
def test_a_wrong_user_or_password(start, login, message, caller):
    assert message in refusal(caller, f"{start},{login}".removesuffix(","))


def test_a_user_who_may_not(start, caller):
    message = refusal(caller, f"{start},username={POWERLESS_USER},password={USER_PASSWORD}")
    assert "no permissions" in message


def test_an_authority_that_did_not_sign(tls_redis, tls_cluster, certificates, caller):
    ending = f",ssl=true,ssl_ca_certs={certificates.other_authority},password={PASSWORD}"
    for start, shown in (
        (f"{HOST}:{tls_redis.port}", f"Redis at {HOST}:{tls_redis.port} over TLS"),
        (tls_cluster.connection_string, f"{tls_cluster.connection_string.split(',')[0]}"),
    ):
        message = refusal(caller, start + ending)
        assert shown in message
        assert "over TLS did not answer (TLS failed: the certificate is not valid, " in message
        caller.ping(f"{start}{ending},ssl_cert_reqs=none")


def test_a_certificate_for_another_host(guarded_redis, certificates, caller):
    relay = Relay(guarded_redis.port, certificates.context("elsewhere"))
    text = over_tls(relay.port, certificates.authority, f"password={PASSWORD}")
    try:
        message = refusal(caller, text)
        assert "TLS failed: the certificate is not valid, Hostname mismatch" in message
        unchecked = f"{text},ssl_check_hostname=false"
        caller.ping(unchecked)
    finally:
        relay.close()


def test_a_server_that_asks_for_the_clients_certificate(mutual_tls_redis, certificates, caller):
    text = over_tls(mutual_tls_redis.port, certificates.authority, f"password={PASSWORD}")
    assert "over TLS did not answer" in refusal(caller, text)
    own = f"ssl_certfile={certificates.certificate('client')}"
    own += f",ssl_keyfile={certificates.key('client')}"
    caller.ping(f"{text},{own}")


def test_a_server_without_tls(guarded_redis, certificates, caller):
    text = over_tls(guarded_redis.port, certificates.authority, f"password={PASSWORD}")
    message = refusal(caller, text, read_timeout_s=0.5)
    assert f"Redis at localhost:{guarded_redis.port} over TLS did not answer (" in message
    assert "TLS failed" in message


def test_a_server_with_tls_refuses_a_client_without(tls_redis, caller):
    message = refusal(caller, f"localhost:{tls_redis.port},password={PASSWORD}")
    assert f"Redis at localhost:{tls_redis.port} did not answer" in message


def test_the_address_of_a_client_says_tls(tls_redis, certificates):
    client = connect(
        RedisOptions(connection_string=over_tls(tls_redis.port, certificates.authority))
    )
    assert shown_address(client) == f"Redis at localhost:{tls_redis.port} over TLS"
    client.close()
