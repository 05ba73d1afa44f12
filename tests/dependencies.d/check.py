"""Checks cargo's metadata of the locks against deny.toml.

check.py DENY METADATA...   prints a line "ok<TAB>NAME" or "wrong<TAB>NAME: WHY" for each check
"""

import json
import re
import sys
import tomllib

REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
OWN = ("symroute", "symroute-fuzz")


def fulfils(expression, allowed):
    """Whether these licences are enough to fulfil a licence expression (SPDX)."""
    # Old crates write a slash for OR. An exception only adds to what a licence permits.
    expression = re.sub(r" WITH \S+", "", expression.replace("/", " OR "))
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)

    def either():
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = both() or found
        return found

    def both():
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found = one() and found
        return found

    def one():
        token = tokens.pop(0) if tokens else ""
        if token != "(":
            return token in allowed
        found = either()
        return bool(tokens) and tokens.pop(0) == ")" and found

    return either() and not tokens


def licences(deny, packages):
    exceptions = {one["crate"]: one["allow"] for one in deny["licenses"]["exceptions"]}
    for package in packages:
        allowed = set(deny["licenses"]["allow"]) | set(exceptions.get(package["name"], []))
        licence = package["license"] or ""
        if not fulfils(licence, allowed):
            yield f"{package['name']} {package['version']} has the licence \"{licence}\""
    known = {package["name"] for package in packages}
    for crate in exceptions.keys() - known:
        yield f"an exception is for {crate}, which nothing depends on"
    for one in deny["licenses"]["allow"]:
        if not any(one in (package["license"] or "") for package in packages):
            yield f"{one} is allowed, and no crate has it"


def duplicates(deny, locks):
    named = {one["crate"] for one in deny["bans"]["skip"]}
    if any(not one.get("reason") for one in deny["bans"]["skip"]):
        yield "a duplicate is named without a reason"
    used = set()
    for packages in locks:
        versions = {}
        for package in packages:
            versions.setdefault(package["name"], set()).add(package["version"])
        for name, found in versions.items():
            left = {version for version in found if f"{name}@{version}" not in named}
            used |= {f"{name}@{version}" for version in found if len(found) > 1}
            if len(left) > 1:
                yield f"{name} is there as {', '.join(sorted(found))}"
    for crate in named - used:
        yield f"{crate} is named as a duplicate, and is none"


def sources(packages):
    for package in packages:
        if package["source"] != REGISTRY and package["name"] not in OWN:
            yield f"{package['name']} comes from {package['source']}"


def same(product, fuzz):
    """Finds crates whose version in fuzz/Cargo.lock is not that of the product."""
    versions = {package["name"]: set() for package in product}
    for package in product:
        versions[package["name"]].add(package["version"])
    for package in fuzz:
        known = versions.get(package["name"])
        if known and package["version"] not in known:
            yield f"{package['name']} is {package['version']} in fuzz/Cargo.lock, else {', '.join(known)}"


def main():
    with open(sys.argv[1], "rb") as file:
        deny = tomllib.load(file)
    locks = []
    for name in sys.argv[2:]:
        with open(name, encoding="utf-8") as file:
            locks.append(json.load(file)["packages"])
    packages = [package for lock in locks for package in lock]
    fuzz, product = sorted(locks, key=lambda lock: all(one["name"] != "symroute-fuzz" for one in lock))
    for name, wrong in (
        ("licences", licences(deny, packages)),
        ("duplicates", duplicates(deny, locks)),
        ("sources", sources(packages)),
        ("the same versions in both locks", same(product, fuzz)),
    ):
        wrong = sorted(set(wrong))
        print(f"wrong\t{name}: {'; '.join(wrong)}" if wrong else f"ok\t{name}")


if __name__ == "__main__":
    main()
