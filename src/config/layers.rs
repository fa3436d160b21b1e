//! The layers of a configuration (files, environment, flags), merged, with the origin of each
//! value.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::{Map, Value};
use toml::de::DeTable;

use super::files::ConfigFiles;
use super::flavors::Flavor;
use super::keys;
use super::problems::{ConfigProblem, ValueOrigin};
use super::tree::{LineIndex, Place, TreeNode};

/// Prefix of environment variables. Two underscores separate the keys after it.
const ENVIRONMENT_PREFIX: &str = "CONSIGN__";

/// Schemes of URLs that may contain a password.
const AMQP_SCHEMES: [&str; 2] = ["amqp:", "amqps:"];
const AMQP_ON_COMMAND_LINE: &str = "an amqp URL can contain a password, so it is not accepted on the command line, which other users can see; use \
     the environment variable CONSIGN__BROKER__URL or broker.url_file";
const SECRET_ON_COMMAND_LINE: &str = "a secret may not be given on the command line, which other users can see; use the environment variable \
     (CONSIGN__SECTION__KEY) or the key that ends with _file";
/// Text for a URL with an unknown scheme: most likely a mistyped `sqlite:`.
const NOT_A_BROKER_URL: &str = "is not a broker URL; it begins with sqlite:, amqps: or amqp:, and only one with sqlite: may be given on the command \
     line (the others may hold a password: use the environment or broker.url_file)";

/// All layers merged, the defaults lowest.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    /// The merged tree.
    pub(super) root: TreeNode,
    /// Origin of each layer, without the line.
    origins: Vec<ValueOrigin>,
    /// Definitions of destinations, of which each directory may have one: by id the argument, the
    /// file and the line.
    defined: HashMap<String, (usize, PathBuf, usize)>,
    /// Files and variables that could not be read. Unless this is empty, a missing key is not a
    /// problem.
    pub(super) problems: Vec<ConfigProblem>,
}

impl Layers {
    /// The defaults alone.
    pub(super) fn of_defaults(defaults: Value) -> Self {
        let root = TreeNode::of_value(defaults, Place { layer: 0, line: 0 });
        Self { root, origins: vec![ValueOrigin::Default], defined: HashMap::new(), problems: Vec::new() }
    }

    /// Adds files, a later one above the earlier ones.
    pub(super) fn files(&mut self, found: &ConfigFiles) {
        self.problems.extend(found.problems.iter().cloned());
        for file in &found.files {
            match &file.text {
                Ok(text) => self.text(&file.path, file.argument, text),
                Err(problem) => self.refuse(ValueOrigin::file(&file.path, None), "", problem.clone()),
            }
        }
    }

    /// Adds the TOML text of `file`, which `argument` names.
    pub(super) fn text(&mut self, file: &Path, argument: usize, text: &str) {
        let lines = LineIndex::of(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let origin = ValueOrigin::file(file, error.span().map(|span| lines.at(span.start)));
            // Only the message: the error's Display quotes the line, which may contain a secret.
            self.refuse(origin, "", format!("not valid TOML ({}); correct the syntax", error.message()));
        }
        if !errors.is_empty() {
            return;
        }
        let place = Place { layer: self.origins.len(), line: 0 };
        match TreeNode::of_toml(table.get_ref(), place, &lines) {
            Ok(mut tree) => {
                self.check_unique(&mut tree, file, argument);
                self.push(ValueOrigin::file(file, None), tree);
            }
            Err(line) => {
                let problem = "has a number that is out of range; give one of at most 64 bits";
                self.refuse(ValueOrigin::file(file, Some(line)), "", problem.to_owned());
            }
        }
    }

    /// Removes destinations that another file of the same directory defines, and refuses them.
    fn check_unique(&mut self, tree: &mut TreeNode, file: &Path, argument: usize) {
        let destinations = tree.entries_mut().and_then(|keys| keys.get_mut("destinations")?.entries_mut());
        let Some(destinations) = destinations else { return };
        destinations.retain(|id, node| {
            let here = (argument, file.to_owned(), node.place.line);
            match self.defined.get(id) {
                Some((other, path, line)) if *other == argument => {
                    let text = format!("is also defined in {}:{line}; keep one of the two", path.display());
                    let origin = ValueOrigin::file(file, Some(node.place.line));
                    let mut problem =
                        ConfigProblem::new(origin, keys::shown(&["destinations".to_owned(), id.clone()]), text);
                    problem.other_file = Some(path.clone());
                    self.problems.push(problem);
                    false
                }
                _ => {
                    self.defined.insert(id.clone(), here);
                    true
                }
            }
        });
    }

    /// Adds every variable that begins with `CONSIGN__`, in the order of their names.
    pub(super) fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut variables: Vec<(String, OsString)> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
            .collect();
        variables.sort();
        for (name, value) in variables {
            let key = name.trim_start_matches(ENVIRONMENT_PREFIX).to_lowercase();
            let path: Vec<String> = key.split("__").map(str::to_owned).collect();
            let origin = ValueOrigin::Environment { variable: name };
            match value.into_string() {
                Ok(text) => self.scalar(origin, &path, &text),
                Err(_) => self.refuse(origin, &path.join("."), "is not UTF-8; give plain text".to_owned()),
            }
        }
    }

    /// Adds a flag: a dotted key and its value.
    pub(super) fn flag(&mut self, key: &str, value: &str) {
        let origin = ValueOrigin::Flag { flag: format!("--set {key}") };
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        // Every user of the machine can see a command line.
        if keys::is_secret(&path) && !value.starts_with("sqlite:") {
            let is_amqp = AMQP_SCHEMES.iter().any(|scheme| value.starts_with(scheme));
            let text = match key {
                "broker.url" if is_amqp => AMQP_ON_COMMAND_LINE,
                "broker.url" => NOT_A_BROKER_URL,
                _ => SECRET_ON_COMMAND_LINE,
            };
            return self.refuse(origin, key, text.to_owned());
        }
        self.scalar(origin, &path, value);
    }

    /// Adds the presets of `aws.flavor`, above the defaults and below everything else.
    pub(super) fn presets(&mut self) {
        let flavor = self.root.at(&["aws", "flavor"].map(str::to_owned)).map(TreeNode::value);
        let Some(flavor) = flavor.and_then(|flavor| Flavor::deserialize(flavor).ok()) else { return };
        let place = Place { layer: self.origins.len(), line: 0 };
        self.origins.push(ValueOrigin::Flavor { flavor });
        for (key, value) in flavor.presets() {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            let node = TreeNode::of_value(keys::parse_text(&path, value), place);
            self.root.fill(&path, &node);
        }
    }

    fn scalar(&mut self, origin: ValueOrigin, path: &[String], text: &str) {
        let value = keys::parse_text(path, text);
        let nest = |inner, key: &String| Value::Object(Map::from_iter([(key.clone(), inner)]));
        let tree = path.iter().rev().fold(value, nest);
        let place = Place { layer: self.origins.len(), line: 0 };
        self.push(origin, TreeNode::of_value(tree, place));
    }

    fn push(&mut self, origin: ValueOrigin, tree: TreeNode) {
        self.origins.push(origin);
        self.root.merge(tree);
    }

    fn refuse(&mut self, origin: ValueOrigin, key: &str, text: String) {
        self.problems.push(ConfigProblem::new(origin, key, text));
    }

    /// Returns the origin of a node of the merged tree.
    pub(super) fn origin_of(&self, node: &TreeNode) -> ValueOrigin {
        match &self.origins[node.place.layer] {
            ValueOrigin::File { file, .. } => ValueOrigin::file(file, Some(node.place.line).filter(|line| *line > 0)),
            other => other.clone(),
        }
    }

    /// Returns true if a layer above the defaults sets the value at `path`.
    pub(super) fn is_set(&self, path: &[String]) -> bool {
        self.root.at(path).is_some_and(|node| node.place.layer > 0)
    }

    /// Returns the origin of the value at `path`, or of the nearest table around a missing value;
    /// `Default` if no layer sets either.
    pub(super) fn nearest(&self, path: &[String]) -> ValueOrigin {
        let nodes = (1..=path.len()).rev().filter_map(|length| self.root.at(&path[..length]));
        nodes.into_iter().find(|node| node.place.layer > 0).map_or(ValueOrigin::Default, |node| self.origin_of(node))
    }
}
