//! A program that is started in a lab: its environment says which lab it is, and the prompt of an interactive shell, too.
//!
//! The files and settings of the user's shell are read as always. Then the mark is put in front of the prompt that they
//! have made, each time it is shown, as prompts may be made anew each time.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::daemon::folders::node;

/// The variable of the environment that has the name of the lab.
pub const VARIABLE: &str = "ESW_LAB";

/// What [`VARIABLE`] is in the lab of `esw exec` and `esw shell`, which has no name.
pub const UNNAMED: &str = "exec";

/// A program that is to be started in a lab.
#[derive(Debug)]
pub struct InLab {
    pub command: Command,
    /// What a shell reads at its start. To be dropped when the program has ended.
    pub files: Files,
}

/// The files that a shell reads at its start.
#[derive(Debug, Default)]
pub struct Files {
    file: Option<OwnedFd>,
    folder: Option<PathBuf>,
}

impl Drop for Files {
    /// Removes the folder, which a shell that has started has removed itself.
    fn drop(&mut self) {
        self.folder.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
    }
}

/// The program of these words, or the user's shell if there are none.
///
/// # Errors
/// The prompt of the shell cannot be marked.
pub fn in_lab(words: &[String], lab: &str) -> Result<InLab> {
    let shell = || std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let (program, rest) = match words.split_first() {
        Some((program, rest)) => (OsString::from(program), rest),
        None => (shell(), &[][..]),
    };
    let mut command = Command::new(&program);
    command.args(rest).env(VARIABLE, lab);
    // `esw` in the lab is for the same node.
    if let Some(node) = node() {
        command.env("ESW_NODE", node);
    }
    let is_interactive = rest.is_empty() && io::stdin().is_terminal() && io::stderr().is_terminal();
    let files = match Path::new(&program).file_name().and_then(OsStr::to_str) {
        Some(name) if is_interactive => mark_prompt(&mut command, name, lab).context("marking the prompt")?,
        _ => Files::default(),
    };
    Ok(InLab { command, files })
}

/// Has a shell mark its prompt. Of a shell that is not known the prompt stays as it is.
fn mark_prompt(command: &mut Command, shell: &str, lab: &str) -> io::Result<Files> {
    let mut files = Files::default();
    match shell {
        "bash" => {
            // Inherited by the shell, which closes it.
            let file = memfd_create("bashrc", MemfdFlags::empty())?;
            let number = file.as_raw_fd();
            fs::File::from(file.try_clone()?).write_all(bash_rc(number).as_bytes())?;
            command.arg("--rcfile").arg(format!("/proc/self/fd/{number}"));
            files.file = Some(file);
        }
        "zsh" => files.folder = Some(zsh_rc(command)?),
        "fish" => drop(command.args(["--init-command", FISH])),
        "sh" | "dash" | "ash" | "ksh" => {
            let sign = if rustix::process::geteuid().is_root() { "# " } else { "$ " };
            let own = std::env::var("PS1").unwrap_or_else(|_| sign.to_owned());
            command.env("PS1", marked(&own, lab));
        }
        _ => {}
    }
    Ok(files)
}

/// A prompt with the mark, if it has none yet.
fn marked(prompt: &str, lab: &str) -> String {
    let mark = format!("(lab {lab}) ");
    if prompt.starts_with(&mark) { prompt.to_owned() } else { mark + prompt }
}

/// What bash reads instead of `~/.bashrc`, which this reads. The mark is put there by a command that works in other shells,
/// too, as the variable may be exported.
fn bash_rc(number: i32) -> String {
    const MARK: &str = r#"case $PS1 in "(lab "*) ;; *) PS1="(lab $ESW_LAB) $PS1" ;; esac"#;
    format!(
        "exec {number}<&-
if [ -f ~/.bashrc ]; then . ~/.bashrc; fi
if [[ $(declare -p PROMPT_COMMAND 2>/dev/null) == 'declare -a'* ]]; then
  PROMPT_COMMAND+=('{MARK}')
else
  PROMPT_COMMAND=\"${{PROMPT_COMMAND:+$PROMPT_COMMAND$'\\n'}}\"'{MARK}'
fi
"
    )
}

/// Makes a folder with files that zsh reads instead of the user's, which they read. The last of them removes the folder.
fn zsh_rc(command: &mut Command) -> io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("esw-zsh-{}", std::process::id()));
    // It fails if another user has made it, who could have put any file into it.
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    fs::write(folder.join(".zshenv"), ZSH_ENV)?;
    fs::write(folder.join(".zshrc"), ZSH_RC)?;
    match std::env::var_os("ZDOTDIR") {
        Some(own) => command.env("ESW_ZDOTDIR", own),
        None => command.env_remove("ESW_ZDOTDIR"),
    };
    command.env("ZDOTDIR", &folder);
    Ok(folder)
}

const ZSH_ENV: &str = r#"__esw_folder=$ZDOTDIR
if (( ${+ESW_ZDOTDIR} )); then export ZDOTDIR=$ESW_ZDOTDIR; else unset ZDOTDIR; fi
unset ESW_ZDOTDIR
[[ -f ${ZDOTDIR:-$HOME}/.zshenv ]] && . ${ZDOTDIR:-$HOME}/.zshenv
(( ${+ZDOTDIR} )) && __esw_own=$ZDOTDIR
ZDOTDIR=$__esw_folder
"#;

const ZSH_RC: &str = r#"command rm -rf -- $__esw_folder
if (( ${+__esw_own} )); then export ZDOTDIR=$__esw_own; else unset ZDOTDIR; fi
unset __esw_folder __esw_own
[[ -f ${ZDOTDIR:-$HOME}/.zshrc ]] && . ${ZDOTDIR:-$HOME}/.zshrc
__esw_mark() { [[ $PROMPT == "(lab "* ]] || PROMPT="(lab $ESW_LAB) $PROMPT" }
autoload -Uz add-zsh-hook && add-zsh-hook precmd __esw_mark
"#;

/// What fish does after the user's configuration. The prompt sees the status of the last command, as before.
const FISH: &str = r#"
functions -q fish_prompt
and functions -c fish_prompt __esw_prompt
or function __esw_prompt; echo '> '; end
function fish_prompt
    set -l last $status
    printf '(lab %s) ' $ESW_LAB
    echo "exit $last" | .
    __esw_prompt
end
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_marked_once() {
        let once = marked("$ ", "demo");
        assert_eq!(once, "(lab demo) $ ");
        assert_eq!(marked(&once, "demo"), once);
    }
}
