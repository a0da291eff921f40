//! Manual pages and completions, read by the programs that they are for.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::dist::installed_archive;

use super::{Printed, Scratch, Subject, output, unpack};

/// The names of the pages, such as `esw-dev`.
fn pages<'s>(subject: &'s Subject) -> impl Iterator<Item = &'s str> {
    subject.made.keys().filter_map(|name| name.strip_prefix("man/")?.strip_suffix(".1"))
}

pub fn groff(subject: &Subject) -> Result<()> {
    for page in pages(subject) {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-k", "-ww", "-z", "-Tutf8"]).arg(subject.out.join(format!("man/{page}.1")));
        let Printed { complaints, .. } = output(&mut groff)?;
        ensure!(complaints.is_empty(), "{complaints}");
    }
    Ok(())
}

pub fn man(subject: &Subject) -> Result<()> {
    let scratch = installed(subject, "man")?;
    for page in pages(subject) {
        let mut man = Command::new("man");
        man.arg("-M").arg(scratch.path().join("usr/share/man")).args(["--warnings", "1", page]).env("MANWIDTH", "80");
        let Printed { text, complaints } = output(&mut man)?;
        ensure!(complaints.is_empty(), "{page}: {complaints}");
        ensure!(text.contains("NAME") && text.contains(page), "`man {page}` printed:\n{text}");
    }
    Ok(())
}

pub fn bash(subject: &Subject) -> Result<()> {
    let scratch = installed(subject, "bash")?;
    // What bash does when the tabulator key is pressed.
    let script = "source usr/share/bash-completion/completions/esw
        complete -p esw >/dev/null
        COMP_WORDS=(esw \"$@\") COMP_CWORD=$#
        _esw esw \"${!#}\" \"${COMP_WORDS[$#-1]}\"
        echo \"${COMPREPLY[@]}\"";
    for (words, completed) in
        [(&["de"][..], "dev"), (&["run", "--ca"], "--card"), (&["check", "--strategy", "b"], "bounded")]
    {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-ec", script, "bash"]).args(words).current_dir(scratch.path());
        let Printed { text, .. } = output(&mut bash)?;
        ensure!(text.trim() == completed, "bash completes `esw {}` to `{}`", words.join(" "), text.trim());
    }
    Ok(())
}

pub fn zsh(subject: &Subject) -> Result<()> {
    let scratch = installed(subject, "zsh")?;
    let script = "fpath=($PWD/usr/share/zsh/vendor-completions $fpath)
        autoload -U compinit && compinit -D -u
        print -r -- ${_comps[esw]}; autoload +X _esw";
    let mut zsh = Command::new("zsh");
    zsh.args(["-f", "-c", script]).current_dir(scratch.path());
    let Printed { text, complaints } = output(&mut zsh)?;
    ensure!(text.trim() == "_esw" && complaints.is_empty(), "zsh has found `{}` {complaints}", text.trim());
    Ok(())
}

pub fn fish(subject: &Subject) -> Result<()> {
    let scratch = installed(subject, "fish")?;
    // fish wants to write its state somewhere.
    let home = scratch.path().join("home");
    fs::create_dir(&home)?;
    let script = "source usr/share/fish/vendor_completions.d/esw.fish; complete -C 'esw de'";
    let mut fish = Command::new("fish");
    fish.args(["--no-config", "-c", script]).env("HOME", &home).current_dir(scratch.path());
    let Printed { text, complaints } = output(&mut fish)?;
    let completed: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
    ensure!(completed == ["dev"], "fish completes `esw de` to {completed:?} {complaints}");
    Ok(())
}

/// The files of the package in a folder, without dpkg.
fn installed(subject: &Subject, purpose: &str) -> Result<Scratch> {
    let scratch = Scratch::new(purpose)?;
    unpack(&installed_archive(subject.ingredients)?, scratch.path())?;
    Ok(scratch)
}
