//! The files of a runtime's configuration. A later file overrides an earlier one.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use wildmatch::WildMatch;

use super::Sourced;
use crate::plain_file::{self, Links};

/// The configuration files in order. The last file that sets a key counts.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Absolute path of each file on the node, and its content.
    files: Vec<(PathBuf, Table)>,
}

/// Reads containerd's configuration: the main file, its imports, and the fragments that newer releases
/// import by default.
pub(super) fn of_containerd(root: &Path, main: Option<&str>, fragments: &str) -> Settings {
    let mut settings = Settings::default();
    let mut patterns: Vec<PathBuf> = vec![Path::new(fragments).join("*.toml")];
    if let Some(main) = main {
        settings.add(root, Path::new(main));
        let imports =
            settings.files.iter().filter_map(|(_, table)| table.get("imports")?.as_array());
        let imports: Vec<&str> = imports.flatten().filter_map(Value::as_str).collect();
        let folder = Path::new(main).parent().unwrap_or(Path::new(""));
        // A relative import starts at the directory of the main file.
        patterns.extend(imports.iter().map(|text| match text.strip_prefix('/') {
            Some(rest) => PathBuf::from(rest),
            None => folder.join(text),
        }));
    }
    for pattern in patterns {
        settings.add_all(root, &pattern);
    }
    settings
}

/// Reads CRI-O's configuration: the main file and the fragments in the order of their names.
pub(super) fn of_crio(root: &Path, main: &str, fragments: &str) -> Settings {
    let mut settings = Settings::default();
    settings.add(root, Path::new(main));
    settings.add_all(root, &Path::new(fragments).join("*"));
    settings
}

impl Settings {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Adds a file, if it can be read and parsed. A runtime would not start with a faulty file.
    fn add(&mut self, root: &Path, file: &Path) {
        let path = root.join(file);
        if self.files.iter().any(|(name, _)| *name == Path::new("/").join(file)) {
            return;
        }
        let Ok(text) = plain_file::read_text(&path, plain_file::LONGEST, Links::Followed) else {
            return;
        };
        match text.parse() {
            Ok(table) => self.files.push((Path::new("/").join(file), table)),
            Err(error) => log::warn!("{}: {error}", path.display()),
        }
    }

    /// Adds the files of a folder whose names match the last part of the pattern, in the order of their names.
    fn add_all(&mut self, root: &Path, pattern: &Path) {
        let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else { return };
        let fits = WildMatch::new(&name.to_string_lossy());
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name())
            .filter(|name| fits.matches(&name.to_string_lossy()))
            .collect();
        names.sort();
        for name in names {
            self.add(root, &folder.join(name));
        }
    }

    /// The last file that sets the key in one of the tables, with the value.
    fn find(&self, tables: &[&[&str]], key: &str) -> Option<(&Path, &Value)> {
        self.files.iter().rev().find_map(|(file, root)| {
            let found = tables.iter().find_map(|path| {
                let mut table = root;
                for name in *path {
                    table = table.get(*name)?.as_table()?;
                }
                table.get(key)
            });
            found.map(|value| (file.as_path(), value))
        })
    }

    pub(super) fn place(&self, tables: &[&[&str]], key: &str) -> Option<(PathBuf, &Value)> {
        self.find(tables, key).map(|(file, value)| (file.into(), value))
    }

    pub(super) fn text(&self, tables: &[&[&str]], key: &str) -> Option<Sourced<String>> {
        let (file, value) = self.find(tables, key)?;
        Some(Sourced { value: value.as_str()?.into(), source: option_and_file(key, file) })
    }

    pub(super) fn list(&self, tables: &[&[&str]], key: &str) -> Option<Sourced<Vec<String>>> {
        let (file, value) = self.find(tables, key)?;
        let all = value.as_array()?.iter().filter_map(|one| Some(one.as_str()?.to_owned()));
        Some(Sourced { value: all.collect(), source: option_and_file(key, file) })
    }

    pub(super) fn number(&self, tables: &[&[&str]], key: &str) -> Option<(PathBuf, i64)> {
        let (file, value) = self.find(tables, key)?;
        Some((file.into(), value.as_integer()?))
    }
}

fn option_and_file(key: &str, file: &Path) -> String {
    format!("{key} of {}", file.display())
}
