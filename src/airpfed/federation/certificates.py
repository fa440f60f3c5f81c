"""The federation's certificate authority, the server's certificate and the devices' keys: creation and checks."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names by which the server's own processes reach it."""


def new_authority(folder: Path, days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Write ca.key and ca.crt: a new authority that may sign the server's certificate and no further authority."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "airpfed federation")])
    usage = {"key_cert_sign": True, "crl_sign": True}
    made = (
        _certificate(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(usage), critical=True)
        .sign(key, hashes.SHA384())
    )
    write_private(folder / "ca.key", key, PrivateFormat.PKCS8)
    write_atomic(folder / "ca.crt", made.public_bytes(Encoding.PEM))
    return key, made


def new_server(
    folder: Path, authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate], hosts: Sequence[str], days: int
) -> None:
    """Write server.key and server.crt for these host names and addresses and for this machine's loopback."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]
    )  # at most 64 characters; the alternative names count
    names = x509.SubjectAlternativeName([_name(host) for host in dict.fromkeys([*hosts, *LOCAL])])
    made = (
        _certificate(name, authority[1].subject, key.public_key(), days)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage({"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority[0].public_key()), critical=False)
        .sign(authority[0], hashes.SHA384())
    )
    write_private(folder / "server.key", key, PrivateFormat.PKCS8)
    write_atomic(folder / "server.crt", made.public_bytes(Encoding.PEM))


def new_device(private_folder: Path, public: Path) -> None:
    """Write a device's key pair in the OpenSSH format that Flower reads."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(private_folder, key, PrivateFormat.OpenSSH)
    write_atomic(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def check_server(folder: Path, host: str) -> None:
    """Raise UserError unless the folder has a valid certificate for `host` from its ca.crt, and the matching key."""
    signer, own = (read_certificate(folder / name) for name in ("ca.crt", "server.crt"))
    key = read_key(folder / "server.key")
    try:
        own.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise UserError(f"{folder / 'server.crt'}: not signed by {folder / 'ca.crt'}") from None
    if key.public_key() != own.public_key():
        raise UserError(f"{folder / 'server.key'}: not the key of server.crt")
    now = datetime.datetime.now(datetime.UTC)
    for name, found in (("ca.crt", signer), ("server.crt", own)):
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            raise UserError(f"{folder / name}: valid from {found.not_valid_before_utc} to {found.not_valid_after_utc}")
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise UserError(
            f"{folder / 'server.crt'}: names no host; `airpfed federate init` writes one that does"
        ) from None
    if _name(host) not in list(names):
        raise UserError(f"{folder / 'server.crt'}: not for {host}; it names {', '.join(str(n.value) for n in names)}")


def check_pair(private_folder: Path, public: Path) -> None:
    """Raise UserError unless the two files are one device's private and public key."""
    if read_public(public) != read_key(private_folder).public_key():
        raise UserError(f"{private_folder}: not the private key of {public}")


def read_public(path: Path) -> ec.EllipticCurvePublicKey:
    """A device's public key."""
    try:
        found = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path}: no public key here; `airpfed federate init` writes them") from None
    if not isinstance(found, ec.EllipticCurvePublicKey):
        raise UserError(f"{path}: not an elliptic-curve key")
    return found


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key without passphrase, PEM or OpenSSH. Raises UserError if other users may read the file."""
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
        load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
        found = load(data, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path}: no private key here; `airpfed federate init` writes them") from None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: not an elliptic-curve key")
    if mode & 0o077:
        raise UserError(f"{path}: others can read this private key; chmod 600 it")
    return found


def write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    """Write a key that only its owner may read, with these permissions from the first byte on."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file. Raises UserError if there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise UserError(f"{path}: no certificate here; `airpfed federate init` writes it") from None


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(allowed: dict[str, bool]) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**(dict.fromkeys(names, False) | allowed))


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
