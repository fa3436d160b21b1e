//! Patterns of names, in which `*` stands for any characters.

/// Returns true if the whole text matches.
pub fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut pieces = rest.split('*').collect::<Vec<_>>();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        // The first occurrence leaves the most for the pieces that follow.
        let Some(at) = text.find(piece) else { return false };
        text = &text[at + piece.len()..];
    }
    text.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("*", "anything.at/all"),
            ("a.*", "a."),
            ("a.*.z", "a.b.c.z"),
            ("*a*b", "xaxbxb"),
            ("a*a", "aa"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("a.*", "a"),
            ("a*a", "a"),
            ("*ab", "abc"),
            ("a*b*c", "acb"),
            ("", "a"),
            ("?", "a"),
            ("A", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
