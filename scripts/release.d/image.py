"""image.py OUT VERSION REVISION ARCHITECTURE=DIR...: writes an archive with an image per architecture and their
index, in the format of the OCI image layout specification. An image has the same content as that of
conf/kubernetes/Containerfile: the two programs, with symroutectl as entry point. All times are
SOURCE_DATE_EPOCH."""

import datetime
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

PREFIX = "application/vnd.oci.image."
EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])
blobs = {}


def add(tar, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, EPOCH
    tar.addfile(info, io.BytesIO(data))


def archive(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data, mode in files:
            add(tar, name, data, mode)
    return out.getvalue()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(kind, data, **more):
    """Stores the data as a blob and returns its OCI descriptor."""
    if isinstance(data, dict):
        data = json.dumps(data, separators=(",", ":")).encode()
    blobs[digest(data)] = data
    return {"mediaType": PREFIX + kind, "digest": digest(data), "size": len(data), **more}


def image(architecture, folder, labels):
    programs = []
    for name in "symroute", "symroutectl":
        with open(os.path.join(folder, name), "rb") as file:
            programs.append((name, file.read(), 0o755))
    layer = archive(programs)
    created = datetime.datetime.fromtimestamp(EPOCH, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = blob("config.v1+json", {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/symroutectl"], "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created": created, "created_by": "scripts/release"}],
    })
    packed = blob("layer.v1.tar+gzip", gzip.compress(layer, 9, mtime=EPOCH))
    manifest = {"schemaVersion": 2, "mediaType": PREFIX + "manifest.v1+json", "config": config, "layers": [packed]}
    return blob("manifest.v1+json", manifest, platform={"architecture": architecture, "os": "linux"})


def main():
    out, version, revision, *architectures = sys.argv[1:]
    labels = {
        "org.opencontainers.image.title": "symroute",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    manifests = [image(*pair.split("=", 1), labels) for pair in architectures]
    index = {"schemaVersion": 2, "mediaType": PREFIX + "index.v1+json", "manifests": manifests}
    name = {"org.opencontainers.image.ref.name": version}
    top = {**index, "manifests": [blob("index.v1+json", index, annotations=name)]}
    with open(out, "wb") as file:
        file.write(archive(
            [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644), ("index.json", json.dumps(top).encode(), 0o644)]
            + [("blobs/" + key.replace(":", "/"), data, 0o644) for key, data in sorted(blobs.items())]
        ))


main()
