//! The bearer token of the admin endpoint, in a file.

use std::path::Path;

use secrecy::SecretString;

/// Lengths of a token.
const TOKEN_LENGTHS: std::ops::RangeInclusive<usize> = 16..=1024;

/// Reads the token, without the white space around it.
///
/// # Errors
/// The reason and the remedy, without the content of the file and its name.
pub fn read_token(file: &Path) -> Result<SecretString, String> {
    let reason = super::files::reason;
    let text = std::fs::read_to_string(file).map_err(|problem| {
        format!("names a file that can't be read: {}; give the path of a readable file", reason(&problem))
    })?;
    let token = text.trim();
    if !TOKEN_LENGTHS.contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(
            "names a file without a token; write 16 to 1024 visible ASCII characters into it, such as the output of \
                    `openssl rand -hex 32`"
                .to_owned(),
        );
    }
    Ok(SecretString::from(token))
}
