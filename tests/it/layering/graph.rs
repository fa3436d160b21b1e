//! Which file of the program uses which, by the paths that it names.

use std::collections::{BTreeMap, BTreeSet};

use crate::testbed::rust::{Module, closing, identifier, is_word, outside, words};

/// Use of one file by another: its line, and the path it names.
pub struct Use {
    pub from: usize,
    pub to: usize,
    pub line: usize,
    pub path: String,
}

/// One name of a `use` declaration.
struct Import {
    path: Vec<String>,
    /// Name in this file; `*` for all.
    name: String,
    public: bool,
    at: usize,
}

struct File {
    imports: Vec<Import>,
    /// Code without `use` declarations and without the paths of `pub(in path)`.
    body: String,
}

/// Uses between the files of a program.
pub fn uses(program: &[Module]) -> Vec<Use> {
    let files: Vec<_> = program.iter().map(|module| File::of(&module.code)).collect();
    let resolver = Resolver {
        program,
        files: &files,
        modules: program.iter().enumerate().map(|(at, module)| (&module.names[..], at)).collect(),
    };
    let mut found = Vec::new();
    for (from, file) in files.iter().enumerate() {
        let imported = file.imports.iter().filter(|import| !import.public || mentions(&file.body, &import.name));
        let imported = imported.map(|import| (import.at, import.path.clone()));
        for (at, path) in imported.chain(paths(&file.body)) {
            if let Some(to) = resolver.target(from, &path, 0).filter(|to| *to != from) {
                found.push(Use { from, to, line: program[from].source.line(at), path: path.join("::") });
            }
        }
    }
    found
}

/// Groups of nodes that reach each other.
pub fn cycles(edges: &BTreeSet<(usize, usize)>) -> Vec<BTreeSet<usize>> {
    let reached: BTreeMap<usize, BTreeSet<usize>> =
        edges.iter().map(|&(from, _)| (from, reachable(edges, from))).collect();
    let mut groups: Vec<BTreeSet<usize>> = Vec::new();
    for (&node, from_here) in reached.iter().filter(|(node, from_here)| from_here.contains(node)) {
        if groups.iter().all(|group| !group.contains(&node)) {
            let back = |other: &&usize| reached.get(other).is_some_and(|from_there| from_there.contains(&node));
            groups.push(from_here.iter().filter(back).copied().collect());
        }
    }
    groups
}

fn reachable(edges: &BTreeSet<(usize, usize)>, from: usize) -> BTreeSet<usize> {
    let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(node) = left.pop() {
        left.extend(edges.range((node, 0)..=(node, usize::MAX)).map(|(_, to)| *to).filter(|to| reached.insert(*to)));
    }
    reached
}

impl File {
    fn of(code: &str) -> Self {
        let mut body = code.to_owned();
        let mut imports = Vec::new();
        for at in words(code, "use").collect::<Vec<_>>() {
            let Some(end) = outside(code, at, &[';']) else { continue };
            let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
            let public = code[line..at].trim_start().starts_with("pub");
            for (path, name) in tree(&code[at + 3..end]) {
                imports.push(Import { path, name, public, at });
            }
            blank(&mut body, line..end);
        }
        for at in words(code, "in").filter(|at| code[..*at].ends_with("pub(")).collect::<Vec<_>>() {
            blank(&mut body, at..closing(code, at - 1));
        }
        Self { imports, body }
    }
}

fn blank(code: &mut String, range: std::ops::Range<usize>) {
    let blanks = code[range.clone()].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
    code.replace_range(range, &blanks);
}

fn mentions(body: &str, name: &str) -> bool {
    words(body, name).next().is_some()
}

/// The paths of a `use` tree, each with the name it gets.
fn tree(text: &str) -> Vec<(Vec<String>, String)> {
    let text = text.trim();
    if let Some(open) = text.find('{') {
        let before: Vec<_> = text[..open].split("::").map(str::trim).filter(|name| !name.is_empty()).collect();
        let (mut found, mut at) = (Vec::new(), open + 1);
        while at < text.len() {
            let end = outside(text, at, &[',', '}']).unwrap_or(text.len());
            for (mut path, mut name) in tree(&text[at..end]) {
                // `a::{self}` names `a`.
                if path == ["self"] {
                    path.clear();
                    name = before.last().map_or(name, |last| (*last).to_owned());
                }
                found.push((before.iter().map(|name| (*name).to_owned()).chain(path).collect(), name));
            }
            at = end + 1;
        }
        return found;
    }
    let (path, name) = text.split_once(" as ").unwrap_or((text, ""));
    let path: Vec<_> = path.split("::").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    let Some(last) = path.last() else { return Vec::new() };
    let name = if name.is_empty() { last.clone() } else { name.trim().to_owned() };
    vec![(path, name)]
}

/// Paths of more than one name in a body: `super::start`, `publish::Message`.
fn paths(body: &str) -> Vec<(usize, Vec<String>)> {
    let mut found: Vec<(usize, Vec<String>)> = Vec::new();
    let mut end = 0;
    for (at, _) in body.match_indices("::") {
        if at < end {
            continue;
        }
        let start = body[..at].rfind(|c| !is_word(c)).map_or(0, |before| before + 1);
        let mut path = vec![body[start..at].to_owned()];
        end = at;
        while let Some(name) = body[end..].strip_prefix("::").map(identifier).filter(|name| !name.is_empty()) {
            path.push(name.to_owned());
            end += 2 + name.len();
        }
        if !path[0].is_empty() {
            found.push((start, path));
        }
    }
    found
}

struct Resolver<'a> {
    program: &'a [Module],
    files: &'a [File],
    modules: BTreeMap<&'a [String], usize>,
}

impl Resolver<'_> {
    /// The file that defines what a path names; `None` where another crate does.
    fn target(&self, from: usize, path: &[String], depth: usize) -> Option<usize> {
        let mut names = self.program[from].names.clone();
        let mut rest = path;
        match rest[0].as_str() {
            "crate" => names.clear(),
            "self" => {}
            "super" => names.truncate(names.len().saturating_sub(1)),
            first => {
                names.push(first.to_owned());
                if !self.modules.contains_key(&names[..]) {
                    return self.imported(from, first, &path[1..], depth);
                }
            }
        }
        rest = &rest[1..];
        while rest.first().is_some_and(|name| name == "super") {
            names.pop();
            rest = &rest[1..];
        }
        while let Some(name) = rest.first().filter(|name| *name != "self" && *name != "*") {
            let child = [&names[..], std::slice::from_ref(name)].concat();
            if !self.modules.contains_key(&child[..]) {
                return self.item(*self.modules.get(&names[..])?, rest, depth);
            }
            names = child;
            rest = &rest[1..];
        }
        self.modules.get(&names[..]).copied()
    }

    /// The file that defines what is named below a name that this file imports.
    fn imported(&self, from: usize, name: &str, below: &[String], depth: usize) -> Option<usize> {
        let import = self.files[from].imports.iter().find(|import| import.name == name && depth <= 8)?;
        self.target(from, &[&import.path[..], below].concat(), depth + 1)
    }

    /// The file that defines an item of a module, which may import it from elsewhere.
    fn item(&self, module: usize, path: &[String], depth: usize) -> Option<usize> {
        let imports = &self.files[module].imports;
        if depth > 8 || self.defines(module, &path[0]) {
            return Some(module);
        }
        if let Some(import) = imports.iter().find(|import| import.name == path[0]) {
            return self.target(module, &import.path, depth + 1);
        }
        let mut globs = imports.iter().filter(|import| import.name == "*");
        let defined = globs.find_map(|import| {
            self.target(module, &import.path, depth + 1).filter(|target| self.defines(*target, &path[0]))
        });
        defined.or(Some(module))
    }

    fn defines(&self, module: usize, name: &str) -> bool {
        const ITEMS: [&str; 9] = ["struct", "enum", "trait", "type", "union", "fn", "const", "static", "mod"];
        let body = &self.files[module].body;
        words(body, name).any(|at| {
            ITEMS.iter().any(|item| {
                body[..at].trim_end().ends_with(&format!(" {item}"))
                    || body[..at].trim_end().ends_with(&format!("\n{item}"))
            })
        })
    }
}

#[test]
fn a_tree_of_imports_is_spelt_out() {
    let spelt = |text: &str| {
        tree(text).into_iter().map(|(path, name)| format!("{}={name}", path.join("::"))).collect::<Vec<_>>()
    };
    assert_eq!(spelt(" a::{b, c::{self, d as e}, f::*}"), ["a::b=b", "a::c=c", "a::c::d=e", "a::f::*=*"]);
    assert_eq!(spelt(" super::x"), ["super::x=x"]);
}

#[test]
fn files_that_reach_each_other_are_a_cycle() {
    let edges = BTreeSet::from([(1, 2), (2, 3), (3, 2), (3, 4), (5, 5)]);
    assert_eq!(cycles(&edges), [BTreeSet::from([2, 3]), BTreeSet::from([5])]);
}

#[test]
fn a_path_below_an_imported_name_is_a_use() {
    let module = |names: &[&str], code: &str| Module {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        source: crate::testbed::rust::Source::parse(names.join("/"), code.to_owned()),
        code: code.to_owned(),
    };
    let program = [
        module(&["a"], "use crate::b;\nfn f() { b::c::g(); }"),
        module(&["b"], "pub mod c;"),
        module(&["b", "c"], "pub fn g() {}"),
    ];
    let found = uses(&program);
    assert!(found.iter().any(|uses| (uses.from, uses.to, uses.line) == (0, 2, 2)), "a.rs uses b/c.rs");
}
