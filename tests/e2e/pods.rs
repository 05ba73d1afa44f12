//! `"scope": "pod"`: replies leave a pod by the interface that the request came in by.

mod attached;
mod document;
mod hostile;
mod lyft;
mod nested;
mod plain;
mod runtime;
mod sbr;
mod seen;
mod site;
