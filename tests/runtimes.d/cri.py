"""Calls a container runtime like the kubelet does, for tests/runtimes. Debian does not package the definitions
of CRI's messages, so this client encodes the fields. Field numbers are those of api.proto of k8s.io/cri-api,
package runtime.v1.

cri.py SOCKET run NAME      starts a pod sandbox, and prints its id
cri.py SOCKET end ID        stops the sandbox twice, because the kubelet may do so, and removes it
cri.py SOCKET ready         waits until the runtime and its network are ready
cri.py image ROOT FILE COMMAND...
                            packs the folder ROOT as the image symroute.test/pause:1, which runs COMMAND
"""

import hashlib
import io
import json
import sys
import tarfile
import time

IMAGE = "symroute.test/pause:1"
PATIENCE = 20  # seconds


def field(number, value):
    """One field of a message: bytes, text, or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def fields(data):
    """The fields of a message, as pairs of number and value."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            yield tag >> 3, number()
        else:
            assert tag & 7 == 2, f"a field of wire type {tag & 7}"
            size = number()
            at += size
            yield tag >> 3, data[at - size:at]


def call(socket, method, message=b""):
    import grpc

    with grpc.insecure_channel(f"unix://{socket}") as channel:
        ask = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        return ask(message, timeout=PATIENCE, wait_for_ready=True)


def run(socket, name):
    metadata = field(1, name) + field(2, f"uid-{name}") + field(3, "default")
    config = field(1, metadata) + field(2, name)
    answer = dict(fields(call(socket, "RunPodSandbox", field(1, config))))
    print(answer[1].decode())


def end(socket, sandbox):
    for method in "StopPodSandbox", "StopPodSandbox", "RemovePodSandbox":
        call(socket, method, field(1, sandbox))


def ready(socket):
    deadline = time.monotonic() + PATIENCE
    while True:
        status = dict(fields(call(socket, "Status")))[1]
        conditions = [dict(fields(value)) for number, value in fields(status) if number == 1]
        # A condition that is false has no field.
        if all(condition.get(2) for condition in conditions):
            return
        if time.monotonic() > deadline:
            sys.exit(f"cri.py: not ready: {conditions}")
        time.sleep(0.1)


def image(root, file, command):
    """Writes an image in the format of "docker save"."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".")
    layer = layer.getvalue()
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as tar:
        for name, data in ("config.json", config), ("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def main():
    words = sys.argv[1:]
    if words[:1] == ["image"]:
        image(words[1], words[2], words[3:])
    elif words[1:] == ["ready"]:
        ready(words[0])
    elif words[1:2] == ["run"]:
        run(words[0], words[2])
    elif words[1:2] == ["end"]:
        end(words[0], words[2])
    else:
        sys.exit(__doc__)


main()
