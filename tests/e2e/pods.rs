//! `"scope": "pod"`: replies leave a pod through the interface that the request arrived on.

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
