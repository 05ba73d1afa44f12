# Prints each object of the list "plugins" of a conflist on a separate line.
{ text = text " " $0 }
END {
    start = match(text, /"plugins"[ \t]*:[ \t]*\[/)
    if (!start) exit 1
    depth = 0
    for (at = start + RLENGTH; at <= length(text); at++) {
        c = substr(text, at, 1)
        if (quoted) {
            if (c == "\\") { object = object c; c = substr(text, ++at, 1) }
            else if (c == "\"") quoted = 0
        } else if (c == "\"") quoted = 1
        else if (c == "{" || c == "[") depth++
        else if (c == "}" || c == "]") { if (--depth < 0) exit }
        else if (c == "," && depth == 0) continue
        if (depth > 0) object = object c
        else if (c == "}") { print object c; object = "" }
    }
}
