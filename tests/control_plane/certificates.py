"""A certificate authority for one run: certificates for the API server and for every user that a test acts as."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFE = timedelta(days=1)


class Authority:
    """Writes keys and certificates into a folder that is deleted after the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("kubeloop-tests", ())
        certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def key(self, name: str) -> Path:
        """Write a private key without a certificate, such as the one that signs service account tokens."""
        return self._write(name, ec.generate_private_key(ec.SECP256R1()))

    def server(
        self, name: str, addresses: Sequence[str] = ("127.0.0.1",), names: Sequence[str] = ("localhost",)
    ) -> tuple[Path, Path]:
        """Write the certificate and the key of a server, by default for loopback."""
        ips = [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
        alternatives = x509.SubjectAlternativeName([*map(x509.DNSName, names), *ips])
        return self._issue(name, _name(name, ()), alternatives)

    def user(self, user: str, groups: Sequence[str], name: str) -> tuple[Path, Path]:
        """Write a user's certificate and key; Kubernetes reads the common name as user, the organizations as groups."""
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._issue(name, _name(user, groups), usage)

    def _issue(self, name: str, subject: x509.Name, extension: x509.ExtensionType) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(subject, self._name, key).add_extension(extension, critical=False).sign(self._key, hashes.SHA256())
        )
        path = self.folder / f"{name}.crt"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path, self._write(name, key)

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self.folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        return path


def _name(common: str, organizations: Sequence[str]) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
    )
