//! The explorer's errors in the words of `esw check`: what to pass, and with which option.

/// The reasons why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", token_text(.0))]
pub struct TokenError(#[from] pub explore::TokenError);

/// The reasons why reports do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", merge_text(.0))]
pub struct MergeError(#[from] pub explore::MergeError);

fn token_text(error: &explore::TokenError) -> String {
    use explore::TokenError::{Changed, Malformed, NoProgram};

    match error {
        Malformed => "not a token: expected what a failure printed after `--replay`, starting with `esw2.`".to_owned(),
        NoProgram(name, whence) => {
            format!("the token is of the scenario `{name}`, which is not in {whence}: give its file after the token")
        }
        Changed(name) => format!(
            "the scenario `{name}` has changed since the token was written: the schedule would not be the same; check it again"
        ),
        other => other.to_string(),
    }
}

fn merge_text(error: &explore::MergeError) -> String {
    use explore::MergeError::{Contents, Malformed, Missing, Nothing};

    match error {
        Malformed { place, why } => format!("{place}: not a report as `esw check --json` prints it: {why}"),
        Contents { program } => format!(
            "{program}: the reports are of scenarios of that name with different contents: the file was changed between the parts, or there are two; run all parts on the same files"
        ),
        Missing { program, of, .. } => format!(
            "{program}: {}: run `esw check --shard I/{of}` with the files and options of the others, and merge again",
            error.missing().unwrap_or_default()
        ),
        Nothing => "no reports to merge: expected lines as `esw check --json` prints them".to_owned(),
        other => other.to_string(),
    }
}
