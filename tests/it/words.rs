//! The words of the program: docs, log lines and command help in the terms of RabbitMQ, AWS,
//! Kubernetes and Prometheus.

use std::collections::BTreeMap;

use crate::testbed::rust::{self, Doc, Module, Source, closing, identifier, is_word, words};

/// Widest line of a doc comment. Tables, code and links can't be broken.
const DOC_WIDTH: usize = 100;

/// Findings that are allowed: the path of the file, and the word. Empty, and to stay so.
const ALLOWED: &[(&str, &str)] = &[];

/// Words that a reader has to guess at, and what to write.
const DIALECT: &[(&[&str], &str)] = &[
    (&["told"], "notified, reported or warned"),
    (&["mend", "mends", "mended", "mending", "mender"], "fixed, resolved or recovered"),
    (&["anew"], "again"),
    (&["whoever"], "the caller, client or process that"),
    (&["put off", "puts off", "putting off"], "deferred, or delayed"),
    (&["give up", "gives up", "given up", "gave up", "giving up"], "abandoned, or dead-lettered"),
    (&["come again", "comes again", "came again", "coming again"], "redelivered, or retried"),
    (&["in vain"], "without success"),
    (&["rung", "rungs", "ladder", "ladders"], "retry delay, or tier"),
    (&["errand", "errands"], "operation, or background task"),
    (&["crowd", "crowds", "crowded"], "waiting jobs"),
    (&["seat", "seats", "seated"], "claim, permit, or slot"),
    (&["spare", "spares", "spared"], "duplicate, or unused"),
    (&["insist", "insists", "insisted"], "retries"),
    (&["heed", "heeds", "heeded"], "respects, or follows"),
    (&["heard of"], "known, or received"),
    (&["go on", "goes on", "went on"], "continues"),
    (&["loan", "loans", "lend", "lends", "lending", "lent"], "unacked delivery, or borrowed"),
    (&["keeper", "keepers"], "owner of the lease"),
    (&["by and by"], "gradually"),
    (&["turned away", "sent away"], "deferred, or rejected"),
    (&["called back", "calls back"], "recalled"),
    (&["forgive", "forgives", "forgiven", "forgave"], "the circuit breaker resets"),
    (&["blame", "blames", "blamed"], "at fault, or attributed to"),
    (&["convict", "convicts", "convicted", "conviction"], "the circuit breaker trips"),
    (&["hoard", "hoards", "hoarded", "hoarding", "hoarder"], "holds unacked deliveries"),
    (&["vanish", "vanishes", "vanished"], "disappeared, or is deleted"),
    (&["pieces"], "parts, or chunks"),
    (&["course of"], "sequence, or during"),
];

/// Phrases of messages that a reader has to decode, and what to write. Doc comments may use them.
const DECODED: &[(&[&str], &str)] = &[
    (&["let us in", "lets us in"], "can be assumed, or is allowed"),
    (&["foresaw"], "unexpected"),
    (&["nevertheless", "all the same"], "anyway"),
    (&["fail alike", "fails alike"], "fail in the same way"),
    (&["lives in", "live in"], "is in"),
    (&["need not do anything"], "no action is needed"),
    (&["broke one of its own rules"], "panicked, which is a defect"),
    (&["so says", "does not say why"], "name the source; without a reason"),
    (&["out of order", "out of date"], "unavailable; expired"),
    (&["does not fit"], "is TYPE; give TYPE"),
    (&["none of the known words", "is none of"], "is not a valid value; give"),
    (&["known here"], "valid keys, or configured"),
    (&["can't be had"], "can't be used"),
    (&["meant to"], "expected"),
    (&["nothing came of"], "say what happened"),
    (&["for good"], "permanently"),
    (&["if it stays so"], "if that does not help"),
    (&["not as it must be", "another than it must be"], "does not match"),
    (&["is gone", "are gone"], "does not exist, or was removed"),
    (&["circuit is open", "circuit open", "open circuits", "the circuit of"], "circuit breaker"),
    (&["is no url", "is no json", "is no field"], "is not a"),
];

/// Text that can't be changed: the ids of dead letters are made of it.
const FROZEN: &str = "it {often}was given up by the broker in {} ({})";

/// Doc comments begin with a noun phrase or a verb ("Returns ...").
const QUESTIONS: [&str; 7] = ["What", "How", "Whether", "Where", "Why", "When", "Who"];

/// Each dialect word of a text: its offset, itself, and what to write instead.
pub(crate) fn dialect(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    listed(DIALECT, text)
}

/// Each word of a list that is in a text.
fn listed(list: &'static [(&[&str], &str)], text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let text = text.to_lowercase();
    let all = list.iter().flat_map(|(forms, instead)| forms.iter().map(move |form| (*form, *instead)));
    all.flat_map(|(form, instead)| words(&text, form).map(move |at| (at, form, instead)).collect::<Vec<_>>()).collect()
}

/// A doc comment as one line, without its code; and the line number of each offset.
fn prose(doc: &Doc) -> (String, Vec<(usize, usize)>) {
    let (mut text, mut starts, mut fenced) = (String::new(), Vec::new(), false);
    for (line, words) in &doc.lines {
        starts.push((text.len(), *line));
        let fence = words.trim_start().starts_with("```");
        fenced ^= fence;
        if !fenced && !fence {
            let spans = words.trim().split('`').enumerate();
            let shown = spans.map(|(at, span)| if at % 2 == 0 { span } else { "`" });
            text.extend(shown);
            text.push(' ');
        }
    }
    (text, starts)
}

fn assert_none(mut found: Vec<String>, advice: &str) {
    found.sort();
    found.dedup();
    assert!(found.is_empty(), "{} findings. {advice}\n{}", found.len(), found.join("\n"));
}

fn finding(source: &Source, line: usize, word: &str, instead: &str) -> Option<String> {
    let allowed = ALLOWED.contains(&(source.path.as_str(), word));
    (!allowed).then(|| format!("{}:{line}: \"{word}\"; write: {instead}", source.path))
}

#[test]
fn doc_comments_speak_the_words_of_the_field() {
    let mut found = Vec::new();
    for source in rust::files("src") {
        for doc in source.docs() {
            let (text, starts) = prose(&doc);
            for (at, word, instead) in dialect(&text) {
                let line = starts.iter().rev().find(|(start, _)| *start <= at).unwrap().1;
                found.extend(finding(&source, line, word, instead));
            }
        }
    }
    assert_none(found, "These doc comments use words that nobody looks for.");
}

#[test]
fn log_lines_and_command_help_speak_the_words_of_the_field() {
    let mut found = Vec::new();
    for source in rust::files("src") {
        for range in spoken(&source.code) {
            for (at, string) in source.strings.iter().filter(|(at, _)| range.contains(at)) {
                for (_, word, instead) in dialect(string) {
                    found.extend(finding(&source, source.line(*at), word, instead));
                }
            }
        }
    }
    assert_none(found, "These log lines, or attributes that are command help, use words that nobody looks for.");
}

#[test]
fn messages_need_no_decoding() {
    let mut found = Vec::new();
    for module in rust::program().iter().filter(|module| module.names.first().is_none_or(|room| room != "sim")) {
        for (at, string) in &module.source.strings {
            // The strings of tests are not blanked, their code is.
            if module.code[*at..].starts_with(' ') || string == FROZEN {
                continue;
            }
            let lines: Vec<_> = string.split("\\\n").map(str::trim_start).collect();
            let text = lines.concat();
            for (_, word, instead) in listed(DECODED, &text).into_iter().chain(dialect(&text)) {
                found.extend(finding(&module.source, module.source.line(*at), word, instead));
            }
        }
    }
    assert_none(found, "These messages have to be decoded.");
}

/// Hints follow a message after a semicolon: "...; correct the key".
#[test]
fn hints_of_failures_have_one_shape() {
    let (mut found, mut checked) = (Vec::new(), 0);
    for module in rust::program() {
        let code = &module.code;
        let given = code.match_indices(".hint(\"").map(|(at, _)| at + ".hint(".len());
        let named = code.match_indices("hint = \"").map(|(at, _)| at + "hint = ".len());
        let constant = code.match_indices("HINT: &str = \"").map(|(at, _)| at + "HINT: &str = ".len());
        for at in given.chain(named).chain(constant) {
            let (_, hint) = module.source.strings.iter().find(|(string, _)| *string == at).expect("a string");
            checked += 1;
            let word = identifier(hint);
            let capital = word.len() > 1 && word.starts_with(char::is_uppercase) && !word.ends_with(char::is_uppercase);
            if capital || hint.ends_with('.') {
                found.push(format!("{}:{}: {hint}", module.source.path, module.source.line(at)));
            }
        }
    }
    assert!(checked > 15, "{checked} hints were found");
    assert_none(found, "Hints begin in lower case and have no full stop.");
}

/// Ranges of log macros, and of the attributes from which clap makes help.
fn spoken(code: &str) -> Vec<std::ops::Range<usize>> {
    let logs = ["trace", "debug", "info", "warn", "error", "event"].map(|level| format!("{level}!("));
    let help = ["arg", "command", "value"].map(|attribute| format!("#[{attribute}("));
    let openings = logs.iter().chain(&help).flat_map(|opening| {
        code.match_indices(opening.as_str())
            .filter(|(at, _)| opening.starts_with('#') || !code[..*at].ends_with(is_word))
            .map(|(at, _)| at + opening.len() - 1)
            .collect::<Vec<_>>()
    });
    openings.map(|open| open..closing(code, open)).collect()
}

#[test]
fn items_are_named_in_the_words_of_the_field() {
    let mut found = Vec::new();
    for source in rust::files("src") {
        for (at, name) in defined(&source.code, &["fn", "struct", "enum", "trait", "type", "mod", "const", "static"]) {
            for (_, word, instead) in dialect(&spoken_name(name)) {
                found.extend(finding(&source, source.line(at), word, &format!("{instead} (in the name {name})")));
            }
        }
    }
    assert_none(found, "These items have names that nobody looks for.");
}

/// A name as words: `LeaseOwner` and `lease_owner` are "lease owner".
fn spoken_name(name: &str) -> String {
    let shouted = !name.contains(|c: char| c.is_lowercase());
    let split = name.chars().flat_map(|c| {
        let begins = c.is_uppercase() && !shouted;
        let c = if c == '_' { ' ' } else { c };
        [begins.then_some(' '), Some(c)].into_iter().flatten()
    });
    split.collect::<String>().trim().to_owned()
}

/// Names that follow these keywords, with their offsets.
fn defined<'a>(code: &'a str, keywords: &'a [&'static str]) -> impl Iterator<Item = (usize, &'a str)> {
    keywords.iter().flat_map(move |keyword| {
        let names = words(code, keyword).filter(|at| code[at + keyword.len()..].starts_with(' '));
        names.map(move |at| (at, identifier(&code[at + keyword.len() + 1..]))).filter(|(_, name)| !name.is_empty())
    })
}

#[test]
fn doc_comments_begin_with_a_noun_or_a_verb() {
    let mut found = Vec::new();
    for source in rust::files("src") {
        for doc in source.docs() {
            let (line, text) = &doc.lines[0];
            let first = identifier(text.trim_start_matches([' ', '#', '*']));
            if QUESTIONS.contains(&first) {
                found.extend(finding(&source, *line, first, "a noun phrase, or a verb such as \"Returns\""));
            }
        }
    }
    assert_none(found, "These doc comments begin like questions.");
}

#[test]
fn doc_comments_are_at_most_100_columns_wide() {
    let mut found = Vec::new();
    for source in rust::files("src") {
        let lines: Vec<_> = source.text.lines().collect();
        for doc in source.docs() {
            let mut fenced = false;
            for (number, text) in &doc.lines {
                fenced ^= text.trim_start().starts_with("```");
                let width = lines[number - 1].chars().count();
                let unbroken = fenced || text.starts_with(" |") || text.contains("://") || text.starts_with(" [");
                if width > DOC_WIDTH && !unbroken {
                    found.push(format!("{}:{number}: {width} columns", source.path));
                }
            }
        }
    }
    assert_none(found, "Wrap these lines at 100 columns.");
}

/// A type that a module defines.
struct Type<'a> {
    module: &'a Module,
    at: usize,
    /// Visible in the whole crate.
    public: bool,
}

impl Type<'_> {
    fn place(&self) -> String {
        format!("{}:{}", self.module.source.path, self.module.source.line(self.at))
    }
}

/// Types by name. Those inside functions and impls are nobody else's.
fn types(program: &[Module]) -> BTreeMap<&str, Vec<Type<'_>>> {
    let mut types: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for module in program {
        for (at, name) in defined(&module.code, &["struct", "enum", "trait", "type", "union"]) {
            let line = module.code[..at].rfind('\n').map_or(0, |end| end + 1);
            let visibility = &module.code[line..at];
            // At the margin, so rustfmt says, is the module itself.
            if !visibility.starts_with(' ') {
                let public = visibility.starts_with("pub ") || visibility.starts_with("pub(crate)");
                types.entry(name).or_default().push(Type { module, at, public });
            }
        }
    }
    types
}

/// Names with more than one of the types that count, each as a line.
fn shared(types: &BTreeMap<&str, Vec<Type<'_>>>, counts: impl Fn(&Type<'_>) -> bool, apart: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, types) in types {
        let types: Vec<_> = types.iter().filter(|defined| counts(defined)).collect();
        let rooms: std::collections::BTreeSet<_> = types.iter().map(|defined| defined.module.names.first()).collect();
        if types.len() > 1 && (!apart || rooms.len() > 1) && !ALLOWED.iter().any(|(_, word)| word == name) {
            let places: Vec<_> = types.iter().map(|defined| defined.place()).collect();
            lines.push(format!("{name}: {}", places.join(", ")));
        }
    }
    lines
}

#[test]
fn public_types_of_different_rooms_have_different_names() {
    let program = rust::program();
    let found = shared(&types(&program), |defined| defined.public, true);
    assert_none(found, "These public types share a name; give each the name of what it is, such as CacheEntry.");
}

#[test]
fn types_have_different_names() {
    let program = rust::program();
    let found = shared(&types(&program), |_| true, false);
    assert_none(found, "These types share a name; give each the name of what it is, such as CacheEntry.");
}

#[test]
fn dialect_is_found_across_lines_and_not_in_code() {
    let text = "/// Is put\n/// off, see `told` and\n/// ```\n/// anew\n/// ```\nfn f() {}\n";
    let source = Source::parse("src/x.rs".into(), text.into());
    let (text, starts) = prose(&source.docs()[0]);
    let found = dialect(&text);
    assert_eq!(found.iter().map(|(_, word, _)| *word).collect::<Vec<_>>(), ["put off"]);
    assert_eq!(starts[0], (0, 1));
    assert!(dialect("untold, mendable and goes once").is_empty());
}
