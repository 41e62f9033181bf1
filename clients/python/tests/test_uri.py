"""Addresses: what each form means, and what is refused."""

import pytest

from sagitta._uri import parse_uri


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("grpc://127.0.0.1:32100", "grpc+tcp://127.0.0.1:32100"),
        ("grpc://db.example", "grpc+tcp://db.example:32100"),
        ("grpc+tcp://db:1", "grpc+tcp://db:1"),
        ("grpc+tls://db.example:443", "grpc+tls://db.example:443"),
        ("GRPC+TLS://db:443", "grpc+tls://db:443"),
        ("flightsql://db:1", "grpc+tls://db:1"),
        ("flightsql://db:1?transport=tcp", "grpc+tcp://db:1"),
        ("flightsql://db:1?transport=tls", "grpc+tls://db:1"),
        ("sagitta://localhost", "grpc+tcp://localhost:32100"),
        ("sagitta://127.0.0.5:7", "grpc+tcp://127.0.0.5:7"),
        ("sagitta://[::1]:7", "grpc+tcp://[::1]:7"),
        ("sagitta://db.example", "grpc+tls://db.example:32100"),
        ("sagitta://10.0.0.1", "grpc+tls://10.0.0.1:32100"),
        ("sagitta://db.example?transport=tcp", "grpc+tcp://db.example:32100"),
        ("sagitta+tls://localhost:1", "grpc+tls://localhost:1"),
        ("grpc://db:1?transport=tcp", "grpc+tcp://db:1"),
    ],
)
def test_the_transport_follows_from_the_address(uri, location):
    assert parse_uri(uri).location == location


def test_user_password_and_schema_are_decoded():
    target = parse_uri("sagitta://an%40na:p%2Fw%3A%23@db:1/lab%20two?transport=tls")
    assert (target.user, target.password, target.schema) == ("an@na", "p/w:#", "lab two")
    assert "p/w" not in str(target)
    assert "p/w" not in repr(target)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("127.0.0.1:32100", "no scheme"),
        ("postgresql://db", "postgresql:// is not known"),
        ("grpc://", "names no host"),
        ("grpc://:1", "names no host"),
        ("grpc://db:99999", "1 to 65535"),
        ("grpc://db:0", "port 0"),
        ("grpc://db:x", "1 to 65535"),
        ("grpc://db?frobs=1", "frobs"),
        ("flightsql://db?transport=unix", "tcp or tls"),
        ("flightsql://db?transport=tcp&transport=tls", "tcp or tls"),
        ("grpc+tls://db?transport=tcp", "contradict"),
        ("grpc://db/a/b", "one schema"),
        ("grpc://a:p#w@db", "#"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_way_to_say_it(uri, said):
    with pytest.raises(ValueError, match=".") as caught:
        parse_uri(uri)
    assert said in str(caught.value)


@pytest.mark.parametrize("uri", ["frob://anna:geheim@db", "anna:geheim@db", "grpc://anna:geheim@db:x", "grpc://anna:geheim@"])
def test_no_error_repeats_the_password(uri):
    with pytest.raises(ValueError, match=".") as caught:
        parse_uri(uri)
    assert "geheim" not in str(caught.value)


def test_an_address_is_text():
    with pytest.raises(TypeError, match="text"):
        parse_uri(None)
