//! The program's own source, read for the tests of its rules (`layering`, `words`, `sizes`).

use std::path::{Path, PathBuf};

/// A Rust file, with code, comments and string literals apart.
pub struct Source {
    /// Path below the repository, such as `src/queue/rabbitmq.rs`.
    pub path: String,
    pub text: String,
    /// The text with comments and the contents of literals blanked. Offsets and lines are those of
    /// the text.
    pub code: String,
    /// Contents of each string literal, with its offset.
    pub strings: Vec<(usize, String)>,
    /// Offset of each comment line (`//`, `///`, `//!`).
    comments: Vec<usize>,
    /// Offsets of the line ends.
    line_ends: Vec<usize>,
}

/// A doc comment: consecutive lines of `///` or `//!`.
pub struct Doc {
    /// Line number, and text without the marker.
    pub lines: Vec<(usize, String)>,
}

/// A file of the program, without its tests.
pub struct Module {
    /// Module names from the crate's root, such as `queue`, `rabbitmq`. Empty for `lib.rs` and
    /// `main.rs`.
    pub names: Vec<String>,
    pub source: Source,
    /// Code without the items under `#[cfg(test)]`.
    pub code: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(root()).unwrap().display().to_string();
        Self::parse(path, text)
    }

    /// Source of a given text.
    pub fn parse(path: String, text: String) -> Self {
        let mut code = text.clone().into_bytes();
        let (mut strings, mut comments) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < text.len() {
            let token = Token::at(&text, at);
            match token.kind {
                Kind::Comment => comments.push(at),
                Kind::String => strings.push((at, text[token.content.clone()].to_owned())),
                Kind::Code | Kind::Char => {}
            }
            for byte in &mut code[token.content] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
            at = token.end;
        }
        let line_ends = text.match_indices('\n').map(|(at, _)| at).collect();
        Self { path, code: String::from_utf8(code).unwrap(), text, strings, comments, line_ends }
    }

    /// Number of the line of an offset, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.line_ends.partition_point(|end| *end < offset) + 1
    }

    /// Doc comments in their order.
    pub fn docs(&self) -> Vec<Doc> {
        let mut docs: Vec<(&str, Doc)> = Vec::new();
        for &at in &self.comments {
            let comment = self.text[at..].lines().next().unwrap();
            let Some(marker) = ["///", "//!"].into_iter().find(|marker| comment.starts_with(marker)) else { continue };
            let line = (self.line(at), comment[marker.len()..].to_owned());
            match docs.last_mut() {
                Some((last, doc)) if *last == marker && doc.lines.last().unwrap().0 + 1 == line.0 => {
                    doc.lines.push(line);
                }
                _ => docs.push((marker, Doc { lines: vec![line] })),
            }
        }
        docs.into_iter().map(|(_, doc)| doc).collect()
    }
}

enum Kind {
    Code,
    Comment,
    String,
    Char,
}

/// Token at an offset: one character of code, a comment, or a literal.
struct Token {
    kind: Kind,
    /// Range to be blanked.
    content: std::ops::Range<usize>,
    end: usize,
}

impl Token {
    fn at(text: &str, at: usize) -> Self {
        let rest = &text[at..];
        if rest.starts_with("//") {
            let end = at + rest.find('\n').unwrap_or(rest.len());
            return Self { kind: Kind::Comment, content: at..end, end };
        }
        if let Some(quotes) = raw_string(text, at) {
            let close = format!("\"{}", "#".repeat(quotes - 2));
            let start = at + quotes;
            let end = start + text[start..].find(&close).unwrap();
            return Self { kind: Kind::String, content: start..end, end: end + close.len() };
        }
        if let Some(after) = rest.strip_prefix('"') {
            let end = at + 1 + closing_quote(after, '"');
            return Self { kind: Kind::String, content: at + 1..end, end: end + 1 };
        }
        if let Some(length) = char_literal(rest) {
            return Self { kind: Kind::Char, content: at + 1..at + 1 + length, end: at + length + 2 };
        }
        Self { kind: Kind::Code, content: at..at, end: at + rest.chars().next().unwrap().len_utf8() }
    }
}

/// Length of `r##"` where a raw string begins.
fn raw_string(text: &str, at: usize) -> Option<usize> {
    let after = text[at..].strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let before = text[..at].trim_end_matches(['b', 'c']);
    (after[hashes..].starts_with('"') && !before.ends_with(is_word)).then_some(hashes + 2)
}

fn closing_quote(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = rest.char_indices().find(|(_, c)| {
        let closes = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        closes
    });
    end.unwrap().0
}

/// Length of what a character literal contains; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('\'')?;
    let first = after.chars().next()?;
    if first == '\\' {
        return Some(closing_quote(after, '\''));
    }
    after[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8())
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Offsets at which a word stands as a whole.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let whole = move |at: &usize| !code[..*at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word);
    code.match_indices(word).map(|(at, _)| at).filter(whole)
}

/// The identifier at the beginning of a text.
pub fn identifier(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// Offset behind the bracket that closes the one at `open`.
pub fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + at + 1;
        }
    }
    code.len()
}

/// Offset of the first of some characters that stands outside of brackets.
pub fn outside(code: &str, from: usize, ends: &[char]) -> Option<usize> {
    let mut at = from;
    while let Some(c) = code[at..].chars().next() {
        if ends.contains(&c) {
            return Some(at);
        }
        at = if matches!(c, '(' | '[' | '{') { closing(code, at) } else { at + c.len_utf8() };
    }
    None
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the repository.
pub fn files(below: &str) -> Vec<Source> {
    fn paths(below: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { paths(&path) } else { vec![path] }).collect()
    }
    let mut paths = paths(&root().join(below));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.sort();
    paths.iter().map(|path| Source::read(path)).collect()
}

/// The files that `lib.rs` and `main.rs` declare, except test modules.
pub fn program() -> Vec<Module> {
    let mut modules = Vec::new();
    for file in ["main.rs", "lib.rs"] {
        add_module(&mut modules, &root().join("src").join(file), &root().join("src"), Vec::new());
    }
    modules
}

fn add_module(modules: &mut Vec<Module>, file: &Path, folder: &Path, names: Vec<String>) {
    let source = Source::read(file);
    let code = without_tests(&source.code);
    for child in declared(&code) {
        let names = [&names[..], std::slice::from_ref(&child)].concat();
        add_module(modules, &folder.join(format!("{child}.rs")), &folder.join(&child), names);
    }
    modules.push(Module { names, source, code });
}

/// The names of `mod name;`.
fn declared(code: &str) -> Vec<String> {
    let names = words(code, "mod").map(|at| (at, identifier(code[at + 3..].trim_start())));
    let files = names.filter(|(at, name)| code[at + 3..].trim_start()[name.len()..].starts_with(';'));
    files.map(|(_, name)| name.to_owned()).collect()
}

/// Code with the items under `#[cfg(test)]` blanked.
fn without_tests(code: &str) -> String {
    const TEST: &str = "#[cfg(test)]";
    let mut left = code.to_owned();
    while let Some(start) = left.find(TEST) {
        let end = end_of_item(&left, start + TEST.len());
        let blank = left[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
        left.replace_range(start..end, &blank);
    }
    left
}

fn end_of_item(code: &str, from: usize) -> usize {
    const ITEMS: [&str; 13] = [
        "pub",
        "fn",
        "async",
        "impl",
        "mod",
        "use",
        "struct",
        "enum",
        "trait",
        "type",
        "const",
        "static",
        "macro_rules",
    ];
    let mut at = from + (code[from..].len() - code[from..].trim_start().len());
    while code[at..].starts_with('#') {
        at = closing(code, at + 1);
        at += code[at..].len() - code[at..].trim_start().len();
    }
    // A field, a variant or an arm ends with a comma.
    let is_item = ITEMS.contains(&identifier(&code[at..])) || code[at..].starts_with("let ");
    let mut end = at;
    loop {
        let c = code[end..].chars().next();
        match c {
            Some('{') if is_item => return closing(code, end),
            Some('(' | '[' | '{') => end = closing(code, end),
            Some(';') | None => return (end + 1).min(code.len()),
            Some(',') if !is_item => return end + 1,
            Some('}') => return end,
            Some(c) => end += c.len_utf8(),
        }
    }
}

#[test]
fn code_comments_and_literals_are_separated() {
    let text = "/// A \"doc\".\nfn f<'a>(c: &'a str) { g('\"', \"a // b\\\"\", r#\"x \"y\" z\"#); } // end\n";
    let source = Source::parse("src/x.rs".into(), text.into());
    let strings: Vec<_> = source.strings.iter().map(|(_, string)| string.as_str()).collect();
    assert_eq!(strings, ["a // b\\\"", "x \"y\" z"]);
    let blank = |length: usize| " ".repeat(length);
    let code = format!(
        "{}\nfn f<'a>(c: &'a str) {{ g(' ', \"{}\", r#\"{}\"#); }} {}\n",
        blank(12),
        blank(8),
        blank(7),
        blank(6)
    );
    assert_eq!(source.code, code);
    assert_eq!(source.docs()[0].lines, [(1, " A \"doc\".".to_owned())]);
}

#[test]
fn test_items_are_left_out() {
    let code = "mod a;\n#[cfg(test)]\nmod b;\nstruct S {\n    #[cfg(test)]\n    t: u8,\n    n: u8,\n}\n#[cfg(test)]\nmod tests {\n}\nfn f() {}\n";
    let left: Vec<_> =
        without_tests(code).lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    assert_eq!(left, ["mod a;", "struct S {", "n: u8,", "}", "fn f() {}"]);
}
