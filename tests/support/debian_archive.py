"""A small archive of Debian packages with a signature of its own, served over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from emu.images.mirrors import Mirrors


class Mirror:
    """An archive with one suite that the tests fill, sign and serve."""

    def __init__(self, root: Path, keys: Path) -> None:
        self.root, self.keys = root, keys
        self.asked: list[str] = []
        self.published = time.time() - 1000
        (root / "pool").mkdir(parents=True)
        self.go = threading.Event()
        self.go.set()
        handler = partial(_Handler, self.asked, self.go, directory=str(root))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        url = f"http://127.0.0.1:{self.server.server_port}"
        self.mirrors = Mirrors(url, url)

    def stop(self) -> None:
        self.go.set()
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def add(
        self, name: str, version: str = "1", content: str = "", beside: bool = False, **fields: str
    ) -> None:
        """Put a package into the pool, in place of any other version of it unless `beside`."""
        if not beside:
            self.remove(name)
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder)
            (files / "DEBIAN").mkdir()
            control = {"Package": name, "Version": version, "Architecture": "amd64", **fields}
            control |= {"Maintainer": "nobody", "Description": "test"}
            text = "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in control.items())
            (files / "DEBIAN/control").write_text(text)
            (files / name).write_text(content or name)
            deb = self.root / f"pool/{name}_{version.rpartition(':')[2]}_amd64.deb"
            quietly("dpkg-deb", "--root-owner-group", "--build", str(files), str(deb))

    def remove(self, name: str) -> None:
        """Take a package out of the pool, in all versions."""
        for old in (self.root / "pool").glob(f"{name}_*"):
            old.unlink()

    def add_source(self, name: str, version: str, content: str) -> None:
        """Put a source package into the archive in place of any other version of it."""
        folder = self.root / "source" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        upstream = version.rpartition(":")[2].rpartition("-")[0]
        (folder / f"{name}_{upstream}.orig.tar.gz").write_text(content)
        (folder / f"{name}_{upstream}.orig.tar.gz.asc").write_text("a signature")
        (folder / f"{name}_{version.rpartition(':')[2]}.debian.tar.xz").write_text("packaging")
        (folder / f"{name}_{version.rpartition(':')[2]}.dsc").write_text("a description")
        lines = [
            f"\n {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}"
            for path in sorted(folder.iterdir())
        ]
        (folder / "stanza").write_text(
            f"Package: {name}\nBinary: {name}\nVersion: {version}\nFormat: 3.0 (quilt)\n"
            f"Directory: source/{name}\nChecksums-Sha256:{''.join(lines)}\n"
        )

    def publish(self) -> None:
        """Write and sign the indexes."""
        stanzas = []
        for deb in sorted((self.root / "pool").iterdir()):
            data = deb.read_bytes()
            stanzas.append(
                f"{quietly('dpkg-deb', '--field', str(deb))}Filename: pool/{deb.name}\n"
                f"Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
            )
        suite = self.root / "dists/test"
        index = suite / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text("\n".join(stanzas))
        sources = suite / "main/source/Sources"
        sources.parent.mkdir(parents=True, exist_ok=True)
        stanzas = [path.read_text() for path in sorted(self.root.glob("source/*/stanza"))]
        sources.write_text("\n".join(stanzas))
        hashes = "".join(
            f" {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} "
            f"{path.relative_to(suite)}\n"
            for path in (index, sources)
        )
        (suite / "Release").write_text(
            f"Origin: Debian\nSuite: test\nCodename: test\nArchitectures: amd64\n"
            f"Components: main\nDate: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
            f"SHA256:\n{hashes}"
        )
        (suite / "InRelease").unlink(missing_ok=True)
        gpg = ("gpg", "--homedir", str(self.keys), "--batch", "--clearsign", "--output")
        quietly(*gpg, str(suite / "InRelease"), str(suite / "Release"))
        self.published += 10  # seconds: HTTP compares those
        os.utime(suite / "InRelease", (self.published, self.published))
        self.asked.clear()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(
        self, asked: list[str], go: threading.Event, *args: object, directory: str
    ) -> None:
        self.asked, self.go = asked, go
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.log_request()
        self.go.wait()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().do_GET()

    def log_request(self, *_: object) -> None:
        if self.path not in self.asked:
            self.asked.append(self.path)

    def log_message(self, *_: object) -> None:
        pass


def quietly(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
