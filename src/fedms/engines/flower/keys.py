"""Certificates and keys of a federation: an authority, the server's certificate, a key a site.

Curves are P-384. Private keys are files that only their owner can read.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import make_folder, write_bytes
from fedms.core.paths import alike, is_name
from fedms.engines.flower.processes import extra_needed

LOCAL = ("127.0.0.1", "localhost")
"""Names of the server for programs beside it."""
HOST = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9.-]{0,251}")
"""A server's name; one in other letters is given as DNS has it (`xn--...`)."""
YEARS = 2
"""How long certificates hold."""
CA = "ca.pem"
"""The authority's certificate, by which the server is known."""


def make_keys(folder: Path, hosts: Sequence[str], sites: Sequence[str]) -> list[Path]:
    """Write `ca.pem`, `ca.key`, `server.pem`, `server.key`, `public/NAME.pub`, and `sites/NAME/` with what
    that site needs: `NAME.key` and `ca.pem`. Return what was written.

    Args:
        hosts: names and addresses by which the server is reached; empty to add sites to a folder of keys.

    Raises:
        ConfigError: a site or a host cannot have this name, or two sites have one.
        FedmsError: the folder is not empty, is no folder of keys, or has a site of this name; or the package
            cryptography is not installed.
    """
    _check_names(folder, hosts, sites)
    with extra_needed():
        made = _site_keys(sites)
        if hosts:
            if folder.exists() and any(folder.iterdir()):
                raise FedmsError(f"{folder}: already there and not empty; leave out --server to add sites")
            made = _certificates([*dict.fromkeys([*hosts, *LOCAL])]) | made
            authority = made[CA]
        elif (folder / CA).exists():
            authority = (folder / CA).read_bytes()
        else:
            raise ConfigError(f"--server: needed for a new folder; {folder} has no {CA}")
    made |= {f"sites/{name}/{CA}": authority for name in sites}
    before = os.umask(0o077)
    try:
        for name, content in made.items():
            make_folder((folder / name).parent)
            write_bytes(folder / name, content)
    finally:
        os.umask(before)
    return [folder / name for name in made]


def _check_names(folder: Path, hosts: Sequence[str], sites: Sequence[str]) -> None:
    for host in hosts:
        if not HOST.fullmatch(host) and not _is_address(host):
            raise ConfigError(f"--server: {host!r:.80} is no name or address of a server")
    for name in sites:
        if not is_name(name):
            raise ConfigError(f"--sites: {name!r:.80} cannot be a folder's name")
    there = [path.stem for path in (folder / "public").glob("*.pub")]
    if taken := {*sites} & {*there}:
        raise FedmsError(f"{folder}: site {min(taken)} has a key already")
    if alike([*there, *sites]) or len({*sites}) < len(sites):
        raise ConfigError("--sites: two sites have one name")


def _certificates(hosts: Sequence[str]) -> dict[str, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from_now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def signed(
        subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, authority: bool
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("fedms authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(from_now - datetime.timedelta(minutes=5))
            .not_valid_after(from_now + datetime.timedelta(days=365 * YEARS))
            .add_extension(
                x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
            )
            .add_extension(_usage(authority), critical=True)
        )
        if not authority:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(each) for each in hosts]), False
            )
        pem: bytes = builder.sign(by, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
        return pem

    ca, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    return {
        CA: signed("fedms authority", ca, ca, authority=True),
        "ca.key": _private(ca, openssh=False),
        "server.pem": signed(hosts[0][:64], server, ca, authority=False),
        "server.key": _private(server, openssh=False),
    }


def _site_keys(sites: Sequence[str]) -> dict[str, bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = {}
    for name in sites:
        key = ec.generate_private_key(ec.SECP384R1())
        made[f"sites/{name}/{name}.key"] = _private(key, openssh=True)
        made[f"public/{name}.pub"] = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    return made


def _private(key: Any, openssh: bool) -> bytes:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    found: bytes = key.private_bytes(serialization.Encoding.PEM, form, plain)
    return found


def _usage(authority: bool) -> Any:
    from cryptography import x509

    wanted = {"key_cert_sign", "crl_sign"} if authority else {"digital_signature"}
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in wanted for name in names})


def _host(text: str) -> Any:
    from cryptography import x509

    return x509.IPAddress(ipaddress.ip_address(text)) if _is_address(text) else x509.DNSName(text)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def admit_sites(address: str, keys: Path, say: Callable[[str], None]) -> None:
    """Let every site connect whose public key is in the folder, and no other.

    Raises:
        FedmsError: a key cannot be read or used, or the SuperLink cannot be reached.
    """
    from cryptography.hazmat.primitives import serialization

    from fedms.engines.flower.internal import set_nodes

    found = {}
    for path in sorted((keys / "public").glob("*.pub")):
        try:
            key = serialization.load_ssh_public_key(path.read_bytes())
        except ValueError:
            raise FedmsError(f"{path}: is no public key") from None
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        found[path.stem] = key.public_bytes(serialization.Encoding.PEM, form)
    for name, became in set_nodes(address, (keys / CA).read_bytes(), found):
        say(f"site {name} is {became}")
