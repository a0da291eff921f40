//! `--refresh`: makes patches again that do not apply any more because the tree has changed.
//!
//! A patch is a change from one tree to another. Git merges that change into the present tree, as it would merge a branch,
//! and finds files that were renamed or moved. The base of the merge is the newest commit that the patch applies to. The
//! result, as a patch of the present tree, replaces the old patch; the header stays. A patch that still applies stays as it
//! is. For a patch that git cannot merge, the report has each hunk that conflicts, and the merge with git's conflict markers
//! is written as a patch of its own, from which a person goes on.
//!
//! Where identifiers were renamed, git sees a conflict in every changed line. `--renamed OLD=NEW` first renames them in the
//! base and in the changed tree, and has rustfmt format both, so that only other differences are left to merge.
//!
//! The repository is only read: the git objects that this needs are in a folder below the target directory.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::workspace::target_dir;

/// Whether to make patches again, and which identifiers were renamed.
#[derive(clap::Args)]
#[group(id = "refreshing")]
pub struct Args {
    /// Make patches again that do not apply any more, by a three-way merge from the newest commit that each applied to, and
    /// exit.
    ///
    /// Prints `applies`, `made again` or `FAILED` for each patch, and for a failed one the hunks that conflict. The exit
    /// status is 1 if one failed; a failed patch stays as it is. The merge of a failed patch, with conflict markers, is
    /// written to target/patched/conflicts/, and the report ends with the commands to go on from there.
    #[arg(long)]
    refresh: bool,
    /// With --refresh: an identifier that was renamed in the tree. If other items have the same name, give it with the
    /// characters around it: `.told(=.with_state_digest(`.
    #[arg(long, value_name = "OLD=NEW", requires = "refresh")]
    renamed: Vec<Renamed>,
}

/// An identifier that was renamed, or a piece of code with one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Renamed {
    old: String,
    new: String,
}

impl FromStr for Renamed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((old, new)) if !old.trim().is_empty() && !new.trim().is_empty() => {
                Ok(Self { old: old.to_owned(), new: new.to_owned() })
            }
            _ => Err("expected an identifier and its new name, OLD=NEW".to_owned()),
        }
    }
}

/// How the patches of a folder depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each applies to the tree.
    Apart,
    /// The tree has all of them; they can be removed from it, the last one first.
    Stacked,
}

/// The result for one patch.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It applies.
    Stayed,
    /// It was made again.
    Remade,
    /// It could not be made again, for the reason in these lines.
    Failed(String),
    /// It belongs together with one that failed, which has this name, and stays as it is.
    Waits(String),
}

impl Args {
    /// Makes patches again if this was requested; returns `None` if it was not.
    ///
    /// # Errors
    /// Git is missing, the repository has no history, or a file cannot be written.
    pub fn run(&self, root: &Path, patches: &[PathBuf], kind: Kind) -> Result<Option<ExitCode>> {
        if !self.refresh {
            return Ok(None);
        }
        let folder = target_dir()?.join("patched");
        let conflicts = folder.join("conflicts");
        let outcomes = refresh(root, &folder.join("refresh"), &conflicts, patches, kind, &self.renamed)?;
        let mut failed = None;
        for (patch, outcome) in patches.iter().zip(outcomes) {
            let name = patch.file_name().unwrap_or_default().to_string_lossy();
            match outcome {
                Outcome::Stayed => println!("applies    {name}"),
                Outcome::Remade => println!("made again {name}"),
                Outcome::Failed(why) => {
                    println!("FAILED     {name}: {}", why.trim_end().replace('\n', "\n           "));
                    failed = failed.or(Some(patch));
                }
                Outcome::Waits(other) => println!("unchanged  {name}: {other} has to be made again first"),
            }
        }
        let Some(first) = failed else { return Ok(Some(ExitCode::SUCCESS)) };
        println!("\n{}", next_steps(first, &conflicts, kind));
        Ok(Some(ExitCode::FAILURE))
    }
}

/// What a person does about a patch that failed, with the commands for this one.
fn next_steps(patch: &Path, conflicts: &Path, kind: Kind) -> String {
    let name = patch.file_stem().unwrap_or_default().to_string_lossy();
    let folder = patch.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let conflicts = conflicts.display();
    let begin = match kind {
        Kind::Apart => format!("    git apply {conflicts}/{name}.patch"),
        Kind::Stacked => format!(
            "    git apply --index {conflicts}/{name}.before.patch   # takes the later patches off, if there are any
    git apply {conflicts}/{name}.patch                  # takes this one off, with conflict markers"
        ),
    };
    let diff = if kind == Kind::Apart { "git diff" } else { "git diff -R" };
    let end = match kind {
        Kind::Apart => format!("    cargo xtask mutants {name}   # shows whether the bug is still caught"),
        Kind::Stacked => format!(
            "    mv {conflicts}/later/*.patch {folder}/   # the later patches, made again, if there are any
    cargo xtask series --refresh   # goes on with the earlier patches"
        ),
    };
    format!(
        "What to do next, for each patch that FAILED:
  If the conflict is only about identifiers that were renamed, give them: --refresh --renamed OLD=NEW.
  Otherwise resolve it by hand. Commit or stash your own changes first; then, in the root of the repository, for {name}:
{begin}
    # Edit the files with conflict markers, as after any `git merge`. `the tree` is the code as it is now, `the patch` is
    # the code as the patch would have it.
    {{ sed '/^diff --git /,$d' {folder}/{name}.patch; {diff} -- . ':!{folder}'; }} > {conflicts}/new
    git restore --staged --worktree . && mv {conflicts}/new {folder}/{name}.patch
{end}
  If there is no conflict file, the change has to be made by hand from the old patch; the other steps are the same."
    )
}

/// Makes the patches again. `folder`: for git objects, removed in the end. `conflicts`: where merges with conflicts are
/// written.
fn refresh(
    root: &Path,
    folder: &Path,
    conflicts: &Path,
    patches: &[PathBuf],
    kind: Kind,
    renamed: &[Renamed],
) -> Result<Vec<Outcome>> {
    let store = Store::new(root, folder, conflicts)?;
    let now = store.tree_of_folder()?;
    let outcomes = match kind {
        Kind::Apart => patches.iter().map(|patch| store.remake_apart(&now, patch, renamed)).collect::<Result<Vec<_>>>(),
        Kind::Stacked => store.remake_stacked(&now, patches, renamed),
    };
    fs::remove_dir_all(folder)?;
    outcomes
}

/// The name of a git object.
type Id = String;

/// A merge with conflicts.
struct Conflict {
    /// The tree that git has made, in which the files have conflict markers.
    tree: Id,
    /// The files that conflict.
    files: Vec<String>,
    /// The names that the markers have for the present tree and for the patch.
    sides: [Id; 2],
}

/// The tree that a merge has made, if there was no conflict.
type Merged = Result<Id, Conflict>;

/// The repository, with a place of its own for new objects.
struct Store<'a> {
    root: &'a Path,
    folder: PathBuf,
    /// Where merges with conflicts are written.
    conflicts: PathBuf,
    /// Where the repository keeps its objects.
    objects: PathBuf,
}

impl<'a> Store<'a> {
    fn new(root: &'a Path, folder: &Path, conflicts: &Path) -> Result<Self> {
        // What a run before has left says nothing about this one.
        for old in [folder, conflicts].into_iter().filter(|old| old.exists()) {
            fs::remove_dir_all(old)?;
        }
        fs::create_dir_all(folder.join("objects")).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        let output = Command::new("git")
            .args(["rev-parse", "--path-format=absolute", "--git-path", "objects"])
            .current_dir(root)
            .output()
            .context("running git")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        let objects = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
        Ok(Self { root, folder, conflicts: conflicts.to_owned(), objects })
    }

    fn git(&self, args: &[&str]) -> Command {
        let mut git = Command::new("git");
        git.args(args).current_dir(self.root);
        git.env("GIT_INDEX_FILE", self.folder.join("index"));
        git.env("GIT_OBJECT_DIRECTORY", self.folder.join("objects"));
        git.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", &self.objects);
        for who in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{who}_NAME"), "refresh").env(format!("GIT_{who}_EMAIL"), "refresh@localhost");
        }
        git
    }

    /// What git says, or what it complains of.
    fn try_ask(&self, args: &[&str]) -> Result<Result<String, String>> {
        let output = self.git(args).output().context("running git")?;
        let (said, complaint) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        Ok(if output.status.success() { Ok(said) } else { Err(format!("{said}{complaint}")) })
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        let said = self.try_ask(args)?;
        said.map_err(|complaint| anyhow::anyhow!("git {}: {}", args.join(" "), complaint.trim()))
    }

    /// What git says, without the end of the line.
    fn ask_line(&self, args: &[&str]) -> Result<String> {
        Ok(self.ask(args)?.trim_end().to_owned())
    }

    /// The tree as it lies in the folder, committed or not.
    fn tree_of_folder(&self) -> Result<Id> {
        self.ask(&["read-tree", "HEAD"])?;
        self.ask(&["add", "--all"])?;
        self.ask_line(&["write-tree"])
    }

    /// A tree with a patch on it, or off; `None` if the patch does not apply.
    fn patched(&self, tree: &str, patch: &Path, how: &[&str]) -> Result<Option<Id>> {
        self.ask(&["read-tree", tree])?;
        let patch = patch.canonicalize().with_context(|| patch.display().to_string())?;
        let path = patch.to_string_lossy();
        let args = [&["apply", "--cached", "--whitespace=nowarn"], how, &[&*path]].concat();
        match self.try_ask(&args)? {
            Ok(_) => Ok(Some(self.ask_line(&["write-tree"])?)),
            Err(_) => Ok(None),
        }
    }

    fn history(&self) -> Result<Vec<Id>> {
        Ok(self.ask(&["rev-list", "HEAD"])?.lines().map(str::to_owned).collect())
    }

    fn remake_apart(&self, now: &str, patch: &Path, renamed: &[Renamed]) -> Result<Outcome> {
        if self.patched(now, patch, &[])?.is_some() {
            return Ok(Outcome::Stayed);
        }
        for commit in self.history()? {
            let base = format!("{commit}^{{tree}}");
            let Some(changed) = self.patched(&base, patch, &[])? else { continue };
            let files = self.changed_files(&base, &changed)?;
            let (base, changed) = (self.rename(&base, &files, renamed)?, self.rename(&changed, &files, renamed)?);
            return match self.merge(&base, now, &changed)? {
                Ok(merged) => self.write(patch, now, &merged),
                Err(conflict) => Ok(Outcome::Failed(self.explain(patch, now, &base, now, &changed, &conflict)?)),
            };
        }
        Ok(Outcome::Failed("it applies to no commit of this branch, so there is no base for a merge".to_owned()))
    }

    fn remake_stacked(&self, now: &str, patches: &[PathBuf], renamed: &[Renamed]) -> Result<Vec<Outcome>> {
        // From the tree with all of them on to the one with none.
        let come_off = |tree: &str| {
            let mut trees = vec![tree.to_owned()];
            for patch in patches.iter().rev() {
                let Some(without) = self.patched(&trees[trees.len() - 1], patch, &["--reverse"])? else {
                    return Ok(None);
                };
                trees.push(without);
            }
            anyhow::Ok(Some(trees))
        };
        if come_off(now)?.is_some() {
            return Ok(patches.iter().map(|_| Outcome::Stayed).collect());
        }
        let mut found = None;
        for commit in self.history()? {
            found = come_off(&format!("{commit}^{{tree}}"))?;
            if found.is_some() {
                break;
            }
        }
        let Some(trees) = found else {
            let why = "no commit of this branch has all patches of the series, so there is no base for a merge";
            return Ok(patches.iter().map(|_| Outcome::Failed(why.to_owned())).collect());
        };
        let files = self.changed_files(&trees[0], &trees[trees.len() - 1])?;
        let trees = trees.iter().map(|tree| self.rename(tree, &files, renamed)).collect::<Result<Vec<_>>>()?;
        // All of them are made again or none: one alone would not come off with the others.
        let mut made = vec![now.to_owned()];
        for pair in trees.windows(2) {
            match self.merge(&pair[0], &made[made.len() - 1], &pair[1])? {
                Ok(without) => made.push(without),
                Err(conflict) => {
                    let failed = patches.len() - made.len();
                    let last = &made[made.len() - 1];
                    let explained = self.explain(&patches[failed], now, &pair[0], last, &pair[1], &conflict)?;
                    let later = self.conflicts.join("later");
                    for (pair, patch) in made.windows(2).zip(patches.iter().rev()) {
                        fs::create_dir_all(&later)?;
                        fs::write(later.join(file_name(patch)), self.patch_text(patch, &pair[1], &pair[0])?)?;
                    }
                    let name = file_name(&patches[failed]);
                    let mut outcomes: Vec<_> = patches.iter().map(|_| Outcome::Waits(name.clone())).collect();
                    outcomes[failed] = Outcome::Failed(explained);
                    return Ok(outcomes);
                }
            }
        }
        let pairs = made.windows(2).zip(patches.iter().rev());
        let mut outcomes =
            pairs.map(|(pair, patch)| self.write(patch, &pair[1], &pair[0])).collect::<Result<Vec<_>>>()?;
        outcomes.reverse();
        Ok(outcomes)
    }

    fn changed_files(&self, from: &str, to: &str) -> Result<Vec<String>> {
        let names = self.ask(&["diff-tree", "-r", "-z", "--name-only", from, to])?;
        Ok(names.split_terminator('\0').map(str::to_owned).collect())
    }

    /// A tree with the new names of identifiers in these files, where it has them.
    fn rename(&self, tree: &str, files: &[String], renamed: &[Renamed]) -> Result<Id> {
        self.ask(&["read-tree", tree])?;
        for file in files.iter().filter(|_| !renamed.is_empty()) {
            let Ok(text) = self.try_ask(&["cat-file", "blob", &format!("{tree}:{file}")])? else { continue };
            let text = renamed.iter().fold(text, |text, Renamed { old, new }| with_renamed(&text, old, new));
            let text = if file.ends_with(".rs") { self.formatted(text)? } else { text };
            let blob = through(&mut self.git(&["hash-object", "-w", "--stdin"]), &text)?.context("git hash-object")?;
            let mode = self.ask(&["ls-files", "--stage", "--", file])?;
            let mode = mode.split(' ').next().unwrap_or("100644");
            self.ask(&["update-index", "--cacheinfo", &format!("{mode},{},{file}", blob.trim_end())])?;
        }
        self.ask_line(&["write-tree"])
    }

    /// Code as rustfmt has it: a new name changes the order of imports and the ends of lines. As it was if rustfmt cannot
    /// read it.
    fn formatted(&self, code: String) -> Result<String> {
        let mut rustfmt = Command::new("rustfmt");
        rustfmt.args(["--edition", "2024", "--quiet"]).current_dir(self.root).stderr(Stdio::null());
        Ok(through(&mut rustfmt, &code)?.unwrap_or(code))
    }

    /// Explains a merge that failed, hunk by hunk, and writes it with its conflict markers.
    ///
    /// `now`: the present tree. `base`, `ours`, `theirs`: what was merged; `ours` differs from `now` if later patches of a
    /// series were taken off.
    fn explain(
        &self,
        patch: &Path,
        now: &str,
        base: &str,
        ours: &str,
        theirs: &str,
        conflict: &Conflict,
    ) -> Result<String> {
        fs::create_dir_all(&self.conflicts)?;
        let written = self.conflicts.join(file_name(patch));
        let before = written.with_extension("before.patch");
        if now != ours {
            fs::write(before, self.diff(now, ours)?)?;
        }
        fs::write(&written, with_sides(&self.diff(ours, &conflict.tree)?, conflict))?;
        let mut text = String::new();
        for (file, header, hunks) in by_file(&self.diff(base, theirs)?) {
            for (n, hunk) in hunks.iter().enumerate() {
                let single = self.folder.join("hunk.patch");
                fs::write(&single, format!("{header}{hunk}"))?;
                let Some(changed) = self.patched(base, &single, &[])? else { continue };
                let Err(alone) = self.merge(base, ours, &changed)? else { continue };
                let _ = write!(text, "\nhunk {} of {} in {file} conflicts:\n{}", n + 1, hunks.len(), indented(hunk));
                for file in &alone.files {
                    let Ok(merged) = self.try_ask(&["cat-file", "blob", &format!("{}:{file}", alone.tree)])? else {
                        let _ = writeln!(text, "{file} does not exist in the tree any more");
                        continue;
                    };
                    for (line, region) in conflict_regions(&with_sides(&merged, &alone)) {
                        let _ = write!(text, "with {file}:{line}:\n{}", indented(&region));
                    }
                }
            }
        }
        if text.is_empty() {
            text = "\neach hunk can be merged alone, but not all together".to_owned();
        }
        Ok(format!("conflicts in {}; see {}{text}", conflict.files.join(", "), written.display()))
    }

    fn diff(&self, from: &str, to: &str) -> Result<String> {
        self.ask(&["diff", "--no-color", "--no-ext-diff", "--no-renames", from, to])
    }

    fn merge(&self, base: &str, ours: &str, theirs: &str) -> Result<Merged> {
        let base = self.ask_line(&["commit-tree", base, "-m", "base"])?;
        let side = |tree: &str| self.ask_line(&["commit-tree", tree, "-p", &base, "-m", "side"]);
        let (ours, theirs) = (side(ours)?, side(theirs)?);
        let merged = self.try_ask(&["merge-tree", "--write-tree", "--name-only", "--no-messages", &ours, &theirs])?;
        Ok(match merged {
            Ok(tree) => Ok(tree.trim_end().to_owned()),
            // The tree, then the files; git's own error, if this is one, has no tree.
            Err(printed) => {
                let mut lines = printed.lines();
                let tree = lines.next().unwrap_or_default().to_owned();
                ensure!(tree.bytes().all(|byte| byte.is_ascii_hexdigit()), "git merge-tree: {}", printed.trim());
                let files = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
                Err(Conflict { tree, files, sides: [ours, theirs] })
            }
        })
    }

    /// Replaces a patch by the change from one tree to another.
    fn write(&self, patch: &Path, from: &str, to: &str) -> Result<Outcome> {
        if from == to {
            return Ok(Outcome::Failed("the tree already has this change, so nothing of the patch is left".to_owned()));
        }
        let new = self.patch_text(patch, from, to)?;
        if new == fs::read_to_string(patch)? {
            return Ok(Outcome::Stayed);
        }
        fs::write(patch, new).with_context(|| patch.display().to_string())?;
        Ok(Outcome::Remade)
    }

    /// The header of a patch, and the change from one tree to another.
    fn patch_text(&self, patch: &Path, from: &str, to: &str) -> Result<String> {
        let old = fs::read_to_string(patch).with_context(|| patch.display().to_string())?;
        let header: String = old.split_inclusive('\n').take_while(|line| !line.starts_with("diff --git ")).collect();
        // The names of objects mean nothing in another repository.
        let diff = self.diff(from, to)?;
        let diff: String = diff.split_inclusive('\n').filter(|line| !line.starts_with("index ")).collect();
        Ok(header + &diff)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Text with the sides of a conflict named in words rather than by commits.
fn with_sides(text: &str, conflict: &Conflict) -> String {
    let [ours, theirs] = &conflict.sides;
    text.replace(ours.as_str(), "the tree").replace(theirs.as_str(), "the patch")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// A diff by its files: each file's name, the lines before its first hunk, and its hunks.
fn by_file(diff: &str) -> Vec<(String, String, Vec<String>)> {
    let mut files: Vec<(String, String, Vec<String>)> = Vec::new();
    for line in diff.split_inclusive('\n') {
        if let Some(names) = line.strip_prefix("diff --git ") {
            let name = names.split(" b/").next().unwrap_or_default().trim_start_matches("a/");
            files.push((name.to_owned(), line.to_owned(), Vec::new()));
            continue;
        }
        let Some((_, header, hunks)) = files.last_mut() else { continue };
        if line.starts_with("@@ ") {
            hunks.push(String::new());
        }
        hunks.last_mut().unwrap_or(header).push_str(line);
    }
    files
}

/// Each region between conflict markers, markers included, with the number of its first line.
fn conflict_regions(merged: &str) -> Vec<(usize, String)> {
    let mut regions: Vec<(usize, String)> = Vec::new();
    let mut is_inside = false;
    for (n, line) in merged.split_inclusive('\n').enumerate() {
        if line.starts_with("<<<<<<< ") {
            regions.push((n + 1, String::new()));
            is_inside = true;
        }
        if let Some((_, region)) = regions.last_mut().filter(|_| is_inside) {
            region.push_str(line);
        }
        is_inside &= !line.starts_with(">>>>>>> ");
    }
    regions
}

/// What a program makes of a text; `None` if it fails.
fn through(program: &mut Command, text: &str) -> Result<Option<String>> {
    let name = program.get_program().to_string_lossy().into_owned();
    let running = || format!("running {name}");
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(running)?;
    let mut stdin = child.stdin.take().context("a program without input")?;
    let text = text.to_owned();
    // Beside the reading: it may write before it has read all.
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = child.wait_with_output().with_context(running)?;
    let written = writer.join().is_ok_and(|written| written.is_ok());
    Ok(if output.status.success() && written { Some(String::from_utf8(output.stdout)?) } else { None })
}

/// A text with one identifier's new name, where it stands as a whole word.
fn with_renamed(text: &str, old: &str, new: &str) -> String {
    let is_part = |c: char| c == '_' || c.is_alphanumeric();
    let (mut renamed, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(old) {
        let (before, after) = (&rest[..at], &rest[at + old.len()..]);
        let last = renamed.chars().next_back().filter(|_| before.is_empty()).or_else(|| before.chars().next_back());
        let begins = !old.starts_with(is_part) || !last.is_some_and(is_part);
        let is_whole = begins && (!old.ends_with(is_part) || !after.starts_with(is_part));
        renamed.push_str(before);
        renamed.push_str(if is_whole { new } else { old });
        rest = after;
    }
    renamed + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of its own.
    struct Repository(PathBuf);

    impl Drop for Repository {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const BEFORE: &str = "fn one() {\n    a();\n    b();\n    c();\n}\n\nfn two() {\n    d();\n    e();\n    f();\n}\n";

    impl Repository {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("refresh-{}-{name}", std::process::id()));
            fs::create_dir_all(folder.join("src")).unwrap();
            let own = Self(folder);
            own.git(&["init", "--quiet", "."]);
            own.write("src/a.rs", BEFORE);
            own.write(".gitignore", "target\n");
            own.commit();
            own
        }

        fn git(&self, args: &[&str]) -> String {
            let output = Command::new("git")
                .args(["-c", "user.name=x", "-c", "user.email=x@localhost"])
                .args(args)
                .current_dir(&self.0)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        }

        fn commit(&self) {
            self.git(&["add", "--all"]);
            self.git(&["commit", "--quiet", "-m", "x"]);
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.join(file), text).unwrap();
        }

        /// A patch of the tree in which one text is another, which is outside of the tree.
        fn patch(&self, name: &str, old: &str, new: &str) -> PathBuf {
            let now = fs::read_to_string(self.0.join("src/a.rs")).unwrap();
            assert!(now.contains(old));
            self.write("src/a.rs", &now.replace(old, new));
            let diff = self.git(&["diff"]);
            self.write("src/a.rs", &now);
            let path = self.0.join(".git").join(name);
            fs::write(&path, format!("Undoes: {name}\n\n{diff}")).unwrap();
            path
        }

        fn refresh(&self, patches: &[PathBuf], kind: Kind, renamed: &[&str]) -> Vec<Outcome> {
            let renamed: Vec<Renamed> = renamed.iter().map(|text| text.parse().unwrap()).collect();
            let (folder, conflicts) = (self.0.join("target/refresh"), self.0.join("target/conflicts"));
            let outcomes = refresh(&self.0, &folder, &conflicts, patches, kind, &renamed).unwrap();
            assert!(!self.0.join("target/refresh").exists());
            outcomes
        }

        fn applies(&self, patch: &Path, how: &[&str]) {
            let patch = patch.to_string_lossy();
            self.git(&[&["apply", "--check"], how, &[&*patch]].concat());
            self.git(&[&["apply"], how, &[&*patch]].concat());
        }
    }

    #[test]
    fn a_patch_follows_a_file_that_has_moved_and_code_around_it_that_has_changed() {
        let repository = Repository::new("moved");
        let patch = repository.patch("one.patch", "    e();\n", "");
        assert_eq!(repository.refresh(std::slice::from_ref(&patch), Kind::Apart, &[]), [Outcome::Stayed]);
        fs::create_dir(repository.0.join("src/deep")).unwrap();
        fs::rename(repository.0.join("src/a.rs"), repository.0.join("src/deep/b.rs")).unwrap();
        // Not committed: it is the folder that counts.
        repository.write("src/deep/b.rs", &format!("//! A title.\n\n{BEFORE}").replace("fn two", "pub fn two"));
        assert_eq!(repository.refresh(std::slice::from_ref(&patch), Kind::Apart, &[]), [Outcome::Remade]);
        let text = fs::read_to_string(&patch).unwrap();
        assert!(text.starts_with("Undoes: one.patch\n\ndiff --git a/src/deep/b.rs"), "{text}");
        assert!(!text.contains("\nindex "), "{text}");
        repository.applies(&patch, &[]);
        let planted = fs::read_to_string(repository.0.join("src/deep/b.rs")).unwrap();
        assert!(planted.contains("d();\n    f();"), "{planted}");
    }

    #[test]
    fn a_name_that_has_changed_is_given_to_the_patch_and_what_conflicts_otherwise_is_named() {
        let repository = Repository::new("renamed");
        let patch = repository.patch("one.patch", "    b();\n    c();\n", "    c();\n    b();\n    bb();\n");
        let before = fs::read_to_string(&patch).unwrap();
        repository.write("src/a.rs", &with_renamed(BEFORE, "b", "begin"));
        repository.commit();
        let failed = repository.refresh(std::slice::from_ref(&patch), Kind::Apart, &[]);
        let [Outcome::Failed(why)] = &failed[..] else { panic!("{failed:?}") };
        for expected in
            ["conflicts in src/a.rs; see ", "hunk 1 of 1 in src/a.rs conflicts:\n    @@ ", "    +    bb();\n"]
        {
            assert!(why.contains(expected), "{why}");
        }
        let sides = "    <<<<<<< the tree\n        begin();\n    =======\n    >>>>>>> the patch\n";
        assert!(why.contains("with src/a.rs:3:\n") && why.contains(sides), "{why}");
        assert_eq!(fs::read_to_string(&patch).unwrap(), before, "a patch that failed stays as it is");
        repository.applies(&repository.0.join("target/conflicts/one.patch"), &[]);
        assert!(fs::read_to_string(repository.0.join("src/a.rs")).unwrap().contains("<<<<<<< the tree"));
        repository.git(&["restore", "."]);
        assert_eq!(repository.refresh(std::slice::from_ref(&patch), Kind::Apart, &["b=begin"]), [Outcome::Remade]);
        repository.applies(&patch, &[]);
        let planted = fs::read_to_string(repository.0.join("src/a.rs")).unwrap();
        assert!(planted.contains("c();\n    begin();\n    bb();"), "{planted}");
    }

    #[test]
    fn patches_that_lie_on_each_other_come_off_in_order() {
        let repository = Repository::new("stacked");
        let first = repository.patch("1.patch", "    b();\n", "    b1();\n");
        repository.applies(&first, &[]);
        repository.commit();
        let second = repository.patch("2.patch", "    b1();\n    c();\n", "    b2();\n    c();\n    c2();\n");
        repository.applies(&second, &[]);
        repository.commit();
        fs::rename(repository.0.join("src/a.rs"), repository.0.join("src/b.rs")).unwrap();
        repository.commit();
        let both = [first, second];
        assert_eq!(repository.refresh(&both, Kind::Stacked, &[]), [Outcome::Remade, Outcome::Remade]);
        // If one cannot be made again, none is.
        let as_they_were = both.clone().map(|patch| fs::read(patch).unwrap());
        let moved = fs::read_to_string(repository.0.join("src/b.rs")).unwrap();
        repository.write("src/b.rs", &moved.replace("    a();\n", "    aa();\n").replace("    b2();\n", "    b3();\n"));
        let failed = repository.refresh(&both, Kind::Stacked, &[]);
        let [Outcome::Waits(other), Outcome::Failed(why)] = &failed[..] else { panic!("{failed:?}") };
        assert!(why.contains("hunk 1 of 1 in src/b.rs conflicts") && other == "2.patch", "{failed:?}");
        assert_eq!(both.clone().map(|patch| fs::read(patch).unwrap()), as_they_were);
        repository.write("src/b.rs", &moved);
        repository.applies(&both[1], &["--reverse"]);
        repository.applies(&both[0], &["--reverse"]);
        assert_eq!(fs::read_to_string(repository.0.join("src/b.rs")).unwrap(), BEFORE);
    }

    #[test]
    fn only_whole_words_are_renamed() {
        assert_eq!(with_renamed("b(bb, b_b, _b, b)b b", "b", "x"), "x(bb, b_b, _b, x)x x");
        assert_eq!(with_renamed("bbb", "b", "x"), "bbb");
        assert_eq!(with_renamed("self.b(b), b(", ".b(", ".x("), "self.x(b), b(");
        assert!(
            "a".parse::<Renamed>().is_err() && "a=".parse::<Renamed>().is_err() && "=b".parse::<Renamed>().is_err()
        );
    }
}
