"""The address of a Redis as feature_store.yaml states it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from redis_servers import LIMITS
from tallystick.errors import InputError
from tallystick.online_store import redis_address
from tallystick.online_store.redis_address import _OPTIONS
from tallystick.online_store.redis_connection import connect
from tallystick.online_store.redis_options import RedisOptions

ROOT = Path(__file__).parents[2]


def read_address(text, redis_type="redis", sentinel_master="mymaster"):
    return redis_address.read_address(
        RedisOptions(connection_string=text, redis_type=redis_type, sentinel_master=sentinel_master)
    )


def mistakes(text, redis_type="redis"):
    with pytest.raises(InputError) as caught:
        read_address(text, redis_type)
    return [problem.where for problem in caught.value.problems], str(caught.value)


def test_one_server():
    address = read_address("h:1,username=u,password=a=b,ssl=true,db=2")
    assert address.nodes == (("h", 1),)
    assert address.options == {"username": "u", "password": "a=b", "ssl": True, "db": 2}
    assert address.redis_type == "redis"
    assert read_address("[::1]:6379").nodes == (("::1", 6379),)


@pytest.mark.parametrize(
    ("text", "redis_type", "nodes"),
    [
        ("a:1,b:2, c:3", "redis", (("a", 1), ("b", 2), ("c", 3))),
        ("a:1,b:2,cluster=true", "redis_cluster", (("a", 1), ("b", 2))),
        ("a:1,cluster=true", "redis", (("a", 1),)),
        ("a:1", "redis_cluster", (("a", 1),)),
    ],
)
def test_a_cluster(text, redis_type, nodes):
    address = read_address(text + ",password=x", redis_type)
    assert address.redis_type == "redis_cluster"
    assert address.nodes == nodes
    assert address.options == {"password": "x"}


def test_sentinels():
    address = read_address(
        "a:1,b:2,password=x,db=1,ssl=true,sentinel_password=y", "redis_sentinel", "features"
    )
    assert address.redis_type == "redis_sentinel"
    assert address.nodes == (("a", 1), ("b", 2))
    assert address.sentinel_master == "features"
    assert address.options == {"password": "x", "db": 1, "ssl": True}
    assert address.sentinel_options == {"password": "y", "ssl": True}
    assert read_address("a:1", "redis_sentinel").sentinel_master == "mymaster"


def test_a_socket():
    address = read_address("unix:///a/b,password=x,db=1")
    assert address.socket == "/a/b"
    assert address.nodes == ()
    assert address.options == {"password": "x", "db": 1}


def test_tls_options(certificates):
    authority, certificate = certificates.authority, certificates.certificate("client")
    address = read_address(
        f"h:1,ssl=True,ssl_ca_certs={authority},ssl_certfile={certificate},"
        f"ssl_keyfile={certificates.key('client')},ssl_cert_reqs=Optional,ssl_check_hostname=false"
    )
    assert address.options == {
        "ssl": True,
        "ssl_ca_certs": str(authority),
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(certificates.key("client")),
        "ssl_cert_reqs": "optional",
        "ssl_check_hostname": False,
    }
    # What is not checked at all has no name that could be checked.
    assert read_address("h:1,ssl=true,ssl_cert_reqs=none").options["ssl_check_hostname"] is False


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("h:1,password=s3cret", "Redis at h:1"),
        ("[::1]:1,ssl=true,password=s3cret", "Redis at [::1]:1 over TLS"),
        ("a:1,b:2,password=s3cret", "Redis Cluster at a:1, b:2"),
        ("unix:///a/b,password=s3cret", "Redis at /a/b"),
    ],
)
def test_what_is_shown_has_no_secret(text, shown):
    address = read_address(text)
    assert str(address) == shown
    assert "s3cret" not in repr(address)


def test_an_error_lists_all_mistakes_and_no_secret():
    where, text = mistakes("6379,ssl=maybe,db=x,pasword=s3cret,ssl_cert_reqs=s3cret")
    assert where == ["address", "ssl", "db", "option", "ssl_cert_reqs"]
    assert "s3cret" not in text
    assert "one of username, password, db, cluster, ssl" in text
    assert "Form: host:port[,host2:port2…][,option=value…]" in text


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ["address"]),
        ("h", ["address"]),
        ("h:0", ["address"]),
        ("h:65536", ["address"]),
        ("h:-1", ["address"]),
        (":1", ["address"]),
        ("h:1,", ["address"]),
        ("h:1,port=2", ["option"]),
        ("h:1,db=-1", ["db"]),
        ("h:1,password=a,password=b", ["password"]),
        # Whatever stands behind the first option may be the rest of a password.
        ("h:1,password=a,s3cret:1", ["option"]),
        ("a:1,b:2,db=0", ["db"]),
        ("a:1,b:2,cluster=false", ["cluster"]),
        ("unix:///a,cluster=true", ["address"]),
        ("unix:///a,ssl=true", ["ssl"]),
        ("h:1,ssl_check_hostname=true", ["ssl"]),
        ("h:1,ssl=false,ssl_cert_reqs=none", ["ssl"]),
        ("h:1,sentinel_password=s3cret", ["sentinel_password"]),
    ],
)
def test_a_mistake(text, where):
    found, message = mistakes(text)
    assert found == where
    assert "s3cret" not in message


def test_an_unknown_type():
    with pytest.raises(ValueError, match="redis_sentinel"):
        RedisOptions(redis_type="sentinel")
    assert mistakes("a:1,cluster=false", "redis_cluster")[0] == ["cluster"]
    assert mistakes("a:1,cluster=true", "redis_sentinel")[0] == ["cluster"]
    assert mistakes("unix:///a", "redis_sentinel")[0] == ["address"]
    with pytest.raises(InputError, match=r"embedded.*\n.*redis_type: expected redis,"):
        connect(RedisOptions(redis_type="redis_cluster"), "unused")


def test_certificate_files_are_checked_before_the_first_connection(certificates, tmp_path):
    absent, empty = tmp_path / "absent.pem", tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    with pytest.raises(InputError) as caught:
        connect(
            RedisOptions(
                connection_string=f"h:1,ssl=true,ssl_ca_certs={absent},ssl_certfile={tmp_path},"
                f"ssl_keyfile={empty}"
            )
        )
    assert [str(problem) for problem in caught.value.problems] == [
        f"ssl_ca_certs: expected a file that can be read, got {absent} (No such file or directory)",
        f"ssl_certfile: expected a file that can be read, got {tmp_path} (Is a directory)",
    ]
    certificate, other_key = certificates.certificate("client"), certificates.key("server")
    where, message = mistakes(
        f"h:1,ssl=true,ssl_ca_certs={empty},ssl_certfile={certificate},ssl_keyfile={other_key}"
    )
    assert where == ["ssl_ca_certs", "ssl_certfile"]
    assert f"expected certificates in PEM form, got {empty}, which has none" in message
    assert f"{certificate} and {other_key}" in message
    assert mistakes(f"h:1,ssl=true,ssl_keyfile={other_key}")[0] == ["ssl_certfile"]
    assert mistakes(f"h:1,ssl=true,ssl_certfile={certificate}")[0] == ["ssl_certfile"]


def test_a_key_with_a_password_is_refused_without_a_prompt(certificates, tmp_path):
    key = serialization.load_pem_private_key(certificates.key("client").read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"s3cret"),
        )
    )
    certificate = certificates.certificate("client")
    where, message = mistakes(f"h:1,ssl=true,ssl_certfile={certificate},ssl_keyfile={locked}")
    assert where == ["ssl_certfile"]
    assert "without a password" in message


def test_the_documents_name_every_option_and_what_a_user_needs():
    settings = (ROOT / "docs" / "settings.md").read_text()
    assert [name for name in _OPTIONS if f"`{name}`" not in settings] == []
    assert f" {LIMITS}\n" in (ROOT / "infra" / "README.md").read_text()
