"""TLS in front of a server that has none, and certificates made for it.

The embedded server's program has no TLS, so a relay ends it: a client sees a real TLS socket.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "127.0.0.1"
_WAIT_S = 30.0


class Gate:
    """Holds all answers until each of some relays has had a request."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._awaited = set(relays)
        self.is_open = False

    def pass_request(self, relay: Relay) -> None:
        self._awaited.discard(relay)
        self.is_open = self.is_open or not self._awaited


class Relay:
    """Passes what it gets to a port and back; ends TLS if it has a context."""

    def __init__(self, target: int, context: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.gate: Gate | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # clients that break off are expected
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, HOST, 0, ssl=context))
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_S)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            answers, requests = await asyncio.open_connection(HOST, self.target)
            writers.append(requests)
            ways = [self._pass(reader, requests, is_answer=False)]
            ways.append(self._pass(answers, writer, is_answer=True))
            # One end closed is all closed.
            await asyncio.wait(map(asyncio.ensure_future, ways), return_when="FIRST_COMPLETED")
        except OSError:
            pass
        finally:
            for one in writers:
                one.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while data := await reader.read(65_536):
            gate = self.gate
            if gate is not None and not is_answer:
                gate.pass_request(self)
            # Each relay has a loop of its own, so that no event of asyncio can be shared.
            while gate is not None and is_answer and not gate.is_open:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            writer.write(data)
            await writer.drain()


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form. The server's is for this machine, the one named elsewhere is not."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def other_authority(self) -> Path:
        return self.folder / "other_authority.pem"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def context(self, name: str = "server", *, asks_clients: bool = False) -> ssl.SSLContext:
        """What a TLS server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate(name), self.key(name))
        if asks_clients:
            context.load_verify_locations(self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(folder: Path) -> Certificates:
    """An authority with certificates of servers and a client, and an authority of nobody."""
    made = Certificates(folder)
    authority_key = _write_key(folder / "authority.key")
    authority = _write_certificate(made.authority, authority_key, authority_key, "authority")
    _write_certificate(made.other_authority, *[_write_key(folder / "other.key")] * 2, "authority")
    for name in ("server", "elsewhere", "client"):
        key = _write_key(made.key(name))
        _write_certificate(made.certificate(name), key, authority_key, name, authority)
    return made


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return key


def _write_certificate(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    authority_key: ec.EllipticCurvePrivateKey,
    name: str,
    authority: x509.Certificate | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    alternatives = here if name == "server" else [x509.DNSName(f"{name}.example")]
    usage = {"key_encipherment": False, "data_encipherment": False, "key_agreement": False}
    usage |= {"encipher_only": False, "decipher_only": False, "content_commitment": False}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    if authority is None:
        signs = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage)
        builder = builder.add_extension(signs, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    certificate = builder.sign(authority_key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate
