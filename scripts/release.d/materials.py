"""materials.py TREE LOCK REVISION: prints the crates of the programs as CycloneDX 1.5 JSON. TREE is output of
"cargo tree" with lines DEPTH|NAME vVERSION|LICENCE, and LOCK is Cargo.lock, which has the hashes."""

import json
import re
import sys
import uuid


def read_tree(lines):
    """Returns two dicts by (name, version), the root first: the licence of a crate, and the crates it needs."""
    licences, needs, above = {}, {}, []
    for line in lines:
        depth, crate, licence = line.rstrip("\n").split("|")
        name, version = crate.split()[:2]
        key = (name, version.removeprefix("v"))
        licences[key] = licence
        needs.setdefault(key, set())
        del above[int(depth):]
        if above:
            needs[above[-1]].add(key)
        above.append(key)
    return licences, needs


def reference(key):
    return "pkg:cargo/{}@{}".format(*key)


def component(key, licence, hashes):
    result = {"bom-ref": reference(key), "name": key[0], "version": key[1], "purl": reference(key), "type": "library"}
    if licence:
        # Old crates write "/" for "OR".
        result["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", licence)}]
    if key in hashes:
        result["hashes"] = [{"alg": "SHA-256", "content": hashes[key]}]
    return result


def main():
    with open(sys.argv[1]) as file:
        licences, needs = read_tree(file)
    with open(sys.argv[2]) as file:
        entries = re.findall(r'name = "(.*)"\nversion = "(.*)"\nsource = ".*"\nchecksum = "(.*)"', file.read())
    revision, hashes = sys.argv[3], {(name, version): checksum for name, version, checksum in entries}
    root = next(iter(licences))
    about = {**component(root, licences[root], hashes), "type": "application"}
    about["properties"] = [{"name": "symroute:commit", "value": revision}]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{reference(root)}#{revision}").urn,
        "version": 1,
        "metadata": {"component": about},
        "components": [component(key, licences[key], hashes) for key in sorted(licences) if key != root],
        "dependencies": [
            {"ref": reference(key), "dependsOn": [reference(need) for need in sorted(needs[key])]} for key in sorted(needs)
        ],
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
